"""Video language models on an exported encoder: PyTorch, no jax.

`import codecvit.llava` loads nothing else; the names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .merv.published import available_model_names, available_models, get_model_description
    from .merv.quick import load_vid
    from .model.config import VISUAL_TOKEN, LlavaConfig
    from .model.modeling import LlavaForConditionalGeneration
    from .model.token_counts import num_visual_tokens, visual_token_groups
    from .templates import TEMPLATES, Template, template_for

_LAZY = {
    "VISUAL_TOKEN": "model.config",
    "LlavaConfig": "model.config",
    "LlavaForConditionalGeneration": "model.modeling",
    "TEMPLATES": "templates",
    "Template": "templates",
    "available_model_names": "merv.published",
    "available_models": "merv.published",
    "get_model_description": "merv.published",
    "load_vid": "merv.quick",
    "num_visual_tokens": "model.token_counts",
    "template_for": "templates",
    "visual_token_groups": "model.token_counts",
}

__all__ = [
    "TEMPLATES",
    "VISUAL_TOKEN",
    "LlavaConfig",
    "LlavaForConditionalGeneration",
    "Template",
    "available_model_names",
    "available_models",
    "get_model_description",
    "load_vid",
    "num_visual_tokens",
    "template_for",
    "visual_token_groups",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'codecvit.llava' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
