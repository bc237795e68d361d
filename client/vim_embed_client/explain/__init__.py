"""Where a Vim looks: hidden attention and token norms, of a model in this process.

Not a route of the service: it looks into every block of one model for a handful of images, takes
a forward on the slow kernels, and would hold up the batches of others. `local` computes with the
service package; `figure` draws.
"""
