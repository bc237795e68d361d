"""What all layers share: what a model is, its pixels and their preprocessing. Imports nothing of ours."""
