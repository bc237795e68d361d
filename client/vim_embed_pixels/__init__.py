"""Fluxes and encoded images to the pixels that a model sees: the one implementation of the client
and of the service.

It imports neither of them, nor torch, nor anything of the network: numpy, and where they are
needed astropy, scipy (extra `astro`) and Pillow.
"""
