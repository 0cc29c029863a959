"""Training runs and the parts that they share."""
