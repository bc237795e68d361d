"""Figures of embeddings: MKNN against k, sheets of nearest neighbours, maps. Needs matplotlib."""
