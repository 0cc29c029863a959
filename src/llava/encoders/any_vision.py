"""Any vision transformer that transformers' AutoModel knows, one frame at a time.

Nothing is known of where its parts are, so that the whole model runs and the hidden state is picked
from what it returns. A model that is used often deserves an entry of its own, see `vits`.

Shape suffixes: B clips, c frames of a clip, S side of a frame in pixels, 3 RGB, X frames, M tokens,
D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers.configuration_utils import PretrainedConfig

from .spec import HALF, NORM, EncoderSpec, Layer, channels_first, chunked, square_grid
from .vits import BESIDE_VISION, HEADS


def _grid(config: PretrainedConfig, image_size: int | None = None) -> tuple[int, int]:
    for name in ("patch_size", "image_size", "num_hidden_layers"):
        if getattr(config, name, None) is None:
            raise ValueError(
                f"the encoder has model_type {config.model_type!r}, whose configuration has no "
                f"{name}: kind 'hf' reads vision transformers with one grid of patches"
            )
    return square_grid(config, image_size)


def _hidden(
    tower: nn.Module, frames_X3SS: torch.Tensor, layer: Layer, weights: dict[str, torch.Tensor]
) -> torch.Tensor:
    options: dict[str, Any] = {"pixel_values": frames_X3SS}
    if "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters:
        options["interpolate_pos_encoding"] = True
    if layer != NORM:
        options["output_hidden_states"] = True
    found = functional_call(tower, weights, kwargs=options) if weights else tower(**options)
    return found.last_hidden_state if layer == NORM else found.hidden_states[layer]


def _features(tower: nn.Module, frames_BcSS3: torch.Tensor, layer: Layer) -> torch.Tensor:
    batch, frames, size = frames_BcSS3.shape[:3]
    rows, columns = _grid(tower.config, size)
    x_XMD = _hidden(tower, channels_first(frames_BcSS3.flatten(0, 1)), layer, {})
    tokens = rows * columns
    if x_XMD.ndim != 3 or x_XMD.shape[1] < tokens:
        raise ValueError(
            f"the encoder gives {list(x_XMD.shape)} for a grid of {rows} x {columns}: kind 'hf' "
            "reads vision transformers with one grid of patches"
        )
    return x_XMD[:, -tokens:].unflatten(0, (batch, frames))


def _used(tower: nn.Module, layer: Layer) -> Iterator[nn.Module]:
    """Found by trying: what a frame's hidden state has a gradient for."""
    config = tower.config
    weights = {name: p.detach().requires_grad_() for name, p in tower.named_parameters()}
    size = ANY_VISION.size(config)
    frame = torch.zeros(1, 3, size, size, dtype=tower.dtype, device=tower.device)
    with torch.enable_grad():
        state = _hidden(tower, frame, layer, weights)
        found = torch.autograd.grad(state.sum(), list(weights.values()), allow_unused=True)
    touched = {name for name, x in zip(weights, found, strict=True) if x is not None}
    yield nn.ParameterList([p for name, p in tower.named_parameters() if name in touched])


ANY_VISION = EncoderSpec(
    classes=(),
    features=chunked(_features),
    used=_used,
    grid=_grid,
    image_mean=HALF,
    image_std=HALF,
    ignored=(*BESIDE_VISION, *HEADS),
)
