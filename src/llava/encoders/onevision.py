"""Our own exports: the one encoder that reads patches, at any places of a video; and as one that
reads whole frames, like others.

Shape suffixes: L patches of all visuals, V visuals, K = P*P*3 values of a patch, D width, B clips,
c frames of a clip, S side of a frame in pixels, P side of a patch, R rows and C columns of patches.
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
from ...sequence import NUM_SLOTS
from .spec import NORM, EncoderSpec, Layer, blocks_before, chunked, square_grid


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


def _frame_features(
    tower: OneVisionEncoderModel, frames_BcSS3: torch.Tensor, layer: Layer
) -> torch.Tensor:
    """Each clip is a patch sequence of all its patches, its frames spread over the time axis."""
    batch, frames, size = frames_BcSS3.shape[:3]
    patch, device = tower.config.patch_size, frames_BcSS3.device
    rows, columns = square_grid(tower.config, size)
    kept = frames_BcSS3[:, :, : rows * patch, : columns * patch]
    cells_BcRPCP3 = kept.reshape(batch, frames, rows, patch, columns, patch, 3)
    pixels_LK = cells_BcRPCP3.transpose(3, 4).reshape(-1, 3 * patch**2)
    t_c = slots(frames).to(device)
    h_R, w_C = torch.arange(rows, device=device), torch.arange(columns, device=device)
    positions_L3 = torch.cartesian_prod(t_c, h_R, w_C).repeat(batch, 1)
    lengths_B = torch.full((batch,), frames * rows * columns, device=device)
    found_LD = _features(tower, pixels_LK, positions_L3, lengths_B, layer)
    return found_LD.view(batch, frames, rows * columns, -1)


def slots(frames: int) -> torch.Tensor:
    """The t of each of some frames: i * 63 / (frames - 1), half to even; 0 of a single one."""
    return (torch.arange(frames) * (NUM_SLOTS - 1) / max(frames - 1, 1)).round().long()


ONEVISION = EncoderSpec(
    classes=((OneVisionEncoderConfig, OneVisionEncoderModel),),
    features=_features,
    used=_used,
    grid=square_grid,
    input="patches",
    native_frames=64,
    chunk=64,
)

ONEVISION_FRAMES = EncoderSpec(
    classes=((OneVisionEncoderConfig, OneVisionEncoderModel),),
    features=chunked(_frame_features),
    used=_used,
    grid=square_grid,
)
"""A frame by itself unless `chunk` says otherwise; `chunk` frames see each other."""
