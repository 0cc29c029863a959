"""Training losses."""

from .cluster_discrimination import cluster_discrimination
from .contrastive import contrastive

__all__ = ["cluster_discrimination", "contrastive"]
