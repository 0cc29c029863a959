"""CodecViT: vision encoders that read video the way a codec sees it.

`import codecvit` loads neither jax nor torch; the names below are imported when they are first
used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .codec.pack import pack_image, pack_video
    from .convert.image_text import load_clip
    from .convert.load import load
    from .sequence import PatchSequence

__version__ = "0.1.0"

_LAZY = {
    "PatchSequence": "sequence",
    "load": "convert.load",
    "load_clip": "convert.image_text",
    "pack_image": "codec.pack",
    "pack_video": "codec.pack",
}

__all__ = ["PatchSequence", "load", "load_clip", "pack_image", "pack_video"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'codecvit' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
