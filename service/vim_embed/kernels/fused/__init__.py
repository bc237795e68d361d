"""Hand-written CUDA kernels for the whole Vim block; models/vim_fused.py strings them together."""
