"""Pairs of pictures (or videos) and texts: sources that can be read at any place, and their loader.

open.py names the kinds of sources, loader.py makes batches of them, pack.py record sets.
"""

from __future__ import annotations

from typing import Any

from .columns import COLUMN_PRESETS, Columns
from .open import open_pairs
from .source import Pair, PairError, PairSource
from .text import PairTextConfig

__all__ = [
    "COLUMN_PRESETS",
    "Columns",
    "Pair",
    "PairError",
    "PairLoader",
    "PairSource",
    "PairTextConfig",
    "iterate_pairs",
    "make_pair_loader",
    "open_pairs",
]


def __getattr__(name: str) -> Any:
    # The loader needs Grain, which the base install, whose verbs open and pack pairs, has not.
    if name in ("PairLoader", "iterate_pairs", "make_pair_loader"):
        from . import loader

        return getattr(loader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
