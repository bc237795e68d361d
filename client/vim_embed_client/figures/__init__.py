"""Sheets, maps and curves of embeddings and scores."""
