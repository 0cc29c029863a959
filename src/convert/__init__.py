"""Exchange with PyTorch: weight maps in numpy; `hf/` holds the files that ship with an export."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inputs import torch_input

__all__ = ["torch_input"]


def __getattr__(name: str) -> Any:
    # Lazily: the weight maps beside it run without torch.
    if name != "torch_input":
        raise AttributeError(f"module 'codecvit.convert' has no attribute {name!r}")
    return importlib.import_module(".inputs", __name__).torch_input
