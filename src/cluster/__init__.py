"""Features -> k-means centres -> labels."""
