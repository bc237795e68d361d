"""`vim-embed demo`: an experiment in small, on the Hubble picture that scikit-image carries.

One direction: command -> figure, flow -> views -> stamps. Needs the [demo] extra.
"""
