"""The sky: angles, catalogues, positions in mosaics, cut-outs, and matching of positions.

astropy and scipy (extra `astro`) do the astronomy, and are imported where they are used. Nothing
here knows of embeddings, of the service or of the command line.
"""
