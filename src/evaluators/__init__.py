"""Quality of frozen embeddings."""
