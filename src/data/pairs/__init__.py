"""Pairs of pictures (or videos) and texts: sources that can be read at any place, and their loader.

open.py names the kinds of sources, loader.py makes batches of them, pack.py record sets.
"""

from .loader import PairLoader, make_pair_loader
from .once import iterate_pairs_once
from .open import open_pairs
from .source import COLUMN_PRESETS, Columns, Pair, PairError, PairSource
from .text import PairTextConfig

__all__ = [
    "COLUMN_PRESETS",
    "Columns",
    "Pair",
    "PairError",
    "PairSource",
    "PairTextConfig",
    "iterate_pairs_once",
    "make_pair_loader",
    "open_pairs",
    "PairLoader",
]
