"""Training losses."""

from .cluster_discrimination import cluster_discrimination

__all__ = ["cluster_discrimination"]
