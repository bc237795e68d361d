"""MKNN of two sets of embeddings: neighbours, pairing by id, the files they lie in."""
