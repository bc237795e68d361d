"""What all layers share: models, pixels and preprocessing. Imports nothing else of ours."""
