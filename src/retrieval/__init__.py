"""Embeddings of files, and what lies near them."""
