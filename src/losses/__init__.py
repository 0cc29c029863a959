"""Training losses."""

from .captioning import captioning
from .cluster_discrimination import cluster_discrimination
from .contrastive import contrastive

__all__ = ["captioning", "cluster_discrimination", "contrastive"]
