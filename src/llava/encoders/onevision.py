"""Our own exports: the one encoder that reads patches, at any places of a video.

Shape suffixes: L patches of all visuals, V visuals, K = P*P*3 values of a patch, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ...convert.hf.configuration_onevision_encoder import OneVisionEncoderConfig
from ...convert.hf.modeling_onevision_encoder import (
    OneVisionEncoderModel,
    packed_layout,
    rotary_tables,
)
from .spec import NORM, EncoderSpec, Layer, blocks_before, square_grid


def _blocks(tower: OneVisionEncoderModel, layer: Layer) -> nn.ModuleList:
    layers = tower.encoder.layers
    return layers[: blocks_before(layer, len(layers))]


def _features(
    tower: OneVisionEncoderModel,
    pixels_LK: torch.Tensor,
    positions_L3: torch.Tensor,
    lengths_V: torch.Tensor,
    layer: Layer,
) -> torch.Tensor:
    """`tower(..., output_hidden_states=True).hidden_states[layer]` without the blocks behind it."""
    config = tower.config
    x_1LD = tower.layernorm_pre(tower.embeddings(pixels_LK))
    positions_1L3, ids_L, sizes = tower._packed(x_1LD, positions_L3, None, lengths_V)
    layout = packed_layout(config._attn_implementation, ids_L, sizes)
    head_width = config.hidden_size // config.num_attention_heads
    cos, sin = rotary_tables(positions_1L3, head_width, config.rope_theta, x_1LD.dtype)
    for block in _blocks(tower, layer):
        x_1LD, _ = block(x_1LD, cos, sin, layout)
    if layer == NORM and tower.layernorm_post is not None:
        x_1LD = tower.layernorm_post(x_1LD)
    return x_1LD[0]


def _used(tower: OneVisionEncoderModel, layer: Layer) -> Iterator[nn.Module]:
    yield tower.embeddings
    yield tower.layernorm_pre
    yield from _blocks(tower, layer)
    if layer == NORM and tower.layernorm_post is not None:
        yield tower.layernorm_post


ONEVISION = EncoderSpec(
    classes=((OneVisionEncoderConfig, OneVisionEncoderModel),),
    features=_features,
    used=_used,
    grid=square_grid,
    input="patches",
    native_frames=64,
    chunk=64,
)
