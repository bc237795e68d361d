"""One running service: models, queue, checks and memory, from start to drain. Knows no HTTP."""
