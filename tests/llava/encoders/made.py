"""Tiny encoders of every kind, with random weights that make every part matter."""

from __future__ import annotations

import torch
from torch import nn

from codecvit.llava.encoders.registry import build_tower, config_of, spec_of

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
_IMAGE = {"image_size": 32, "patch_size": 8}
TINY = {
    "clip": {"model_type": "clip_vision_model", **_SIZES, **_IMAGE},
    "siglip": {"model_type": "siglip_vision_model", **_SIZES, **_IMAGE},
    "siglip2": {"model_type": "siglip2_vision_model", **_SIZES, "patch_size": 8, "num_patches": 16},
    "dinov2": {"model_type": "dinov2", **_SIZES, **_IMAGE},
    "dinov2 with registers": {"model_type": "dinov2_with_registers", **_SIZES, **_IMAGE},
    "vivit": {
        "model_type": "vivit",
        **_SIZES,
        **{"image_size": 32, "num_frames": 4, "tubelet_size": [2, 8, 8]},
    },
    "languagebind_video": {
        "model_type": "languagebind_video_vision",
        **_SIZES,
        **_IMAGE,
        "num_frames": 4,
    },
    "internvideo2": {"model_type": "internvideo2_vision", **_SIZES, **_IMAGE, "num_frames": 4},
    "hf": {"model_type": "vit", **_SIZES, **_IMAGE},
}
"""Configurations by kind; what follows a space in a key is a remark."""

PREFIX = {"clip": 1, "dinov2": 1, "dinov2 with registers": 5, "hf": 1, "vivit": 1}
"""Tokens in front of those of the grid; none where nothing is said."""

OURS = ("languagebind_video", "internvideo2")
"""Kinds that transformers lacks."""


def kind_of(name):
    """The kind of an entry of TINY."""
    return name.split(" ")[0]


def stir(tower, seed=0):
    """Random numbers in every parameter, so that no part of a model is without effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
        for module in tower.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.add_(1)
    return tower


def tiny_tower(name, seed=0, **changes):
    """(spec, tower) of an entry of TINY, in eval mode."""
    kind = kind_of(name)
    config = config_of(kind, {**TINY[name], **changes})
    return spec_of(kind), stir(build_tower(kind, config), seed).eval()


def noise(visuals=2, frames=4, size=32, seed=0):
    """Normalised frames [V, n, S, S, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(visuals, frames, size, size, 3, generator=generator)
