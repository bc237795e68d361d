"""Measures what a dtype keeps of float32, on a user's own weights and images.

images: which rows. observe: what goes on inside the reference run. measure: both runs. neighbours:
what their embeddings agree on. findings: what is wrong with a model or a dtype. report: the files.
Stands on `http` for decoding images as requests do, and on the client for reading files and for
MKNN. docs/precision.md is the user's page.
"""
