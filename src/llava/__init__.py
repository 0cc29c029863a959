"""Video language models on an exported encoder: PyTorch, no jax.

`import codecvit.llava` loads nothing else; the names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import VISUAL_TOKEN, LlavaConfig
    from .modeling import LlavaForConditionalGeneration
    from .templates import TEMPLATES, Template, template_for
    from .token_counts import num_visual_tokens, visual_token_groups

_LAZY = {
    "VISUAL_TOKEN": "config",
    "LlavaConfig": "config",
    "LlavaForConditionalGeneration": "modeling",
    "TEMPLATES": "templates",
    "Template": "templates",
    "num_visual_tokens": "token_counts",
    "template_for": "templates",
    "visual_token_groups": "token_counts",
}

__all__ = [
    "TEMPLATES",
    "VISUAL_TOKEN",
    "LlavaConfig",
    "LlavaForConditionalGeneration",
    "Template",
    "num_visual_tokens",
    "template_for",
    "visual_token_groups",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'codecvit.llava' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
