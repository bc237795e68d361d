"""From a module to embeddings: pooling, layers, CUDA graphs, exact batches, copies to the device.

Knows neither files nor requests."""
