"""Pixels of visuals -> features of the encoders, which may be kept for further questions.

Shape suffixes: V visuals, L patches of all visuals, K = P*P*3 values of a patch, F shared frames, S
their side, 3 RGB, D width of an encoder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..encoders.encode import encode_frames
from ..encoders.entry import EncoderEntry
from ..encoders.spec import EncoderSpec, Layer
from .config import LlavaConfig
from .fused_projector import Seen
from .shared_cells import frame_places, presence

VISUALS = ("patches", "positions", "lengths", "grids", "frames", "frame_counts")
"""The arguments of `forward` that visuals come in."""


def encode_patches(
    spec: EncoderSpec,
    tower: nn.Module,
    patches: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    layer: Layer,
    statistics: tuple[Sequence[float], Sequence[float]],
) -> torch.Tensor:
    """Features of an encoder that reads patches, one per patch.

    Args:
      spec: of the tower.
      tower: the encoder.
      patches: uint8 levels, or normalised floating pixels, [L, K], visual after visual.
      positions: integers [L, 3], (t, h, w).
      lengths: integers [V], patches of each visual.
      layer: hidden state that is read.
      statistics: mean and deviation per channel of RGB in 0..1.

    Returns:
      [L, D].

    Raises:
      ValueError: a shape does not fit.
    """
    side = tower.config.patch_size
    if patches.ndim != 2 or patches.shape[1] != 3 * side**2:
        raise ValueError(
            f"patches are {list(patches.shape)}; the encoder has patches of {side} x {side} "
            f"pixels and takes [total, {3 * side**2}]: resize each patch by itself"
        )
    if len(positions) != len(patches):
        raise ValueError(f"positions has {len(positions)} rows for {len(patches)} patches")
    if int(lengths.sum()) != len(patches):
        raise ValueError(f"lengths = {lengths.tolist()} add up to other than {len(patches)}")
    if not patches.is_floating_point():
        mean, std = (torch.tensor(values, device=patches.device) for values in statistics)
        pixels = patches.view(len(patches), -1, 3).float() / 255
        patches = ((pixels - mean) / std).flatten(1)
    return spec.features(tower, patches.to(tower.dtype), positions, lengths, layer)


def encode_all(
    config: LlavaConfig,
    towers: Mapping[str, nn.Module],
    visuals: Mapping[str, torch.Tensor | None],
) -> dict[str, Seen]:
    """Features of all of a model's encoders, by name.

    Args:
      config: of a model with `encoders`.
      towers: by name.
      visuals: VISUALS, as for `LlavaForConditionalGeneration.forward`; those of patches, or of
        frames, are None where no visual has any.

    Raises:
      ValueError: something is missing or given for no encoder, or a shape does not fit.
    """
    counts = [visuals[name] for name in ("lengths", "frame_counts") if visuals[name] is not None]
    if len({len(count) for count in counts}) != 1:
        raise ValueError(
            f"lengths and frame_counts are of {[len(count) for count in counts]} visuals: each "
            "states all of them, with 0 where a visual has none"
        )
    for name, read in (("patches", config.patch_encoder), ("frames", config.frame_rule)):
        if visuals[name] is not None and read is None:
            raise ValueError(f"{name} are given, and no encoder of the model reads {name}")
    seen = {}
    for entry in config.encoders:
        encode, tower = _patches if entry.reads_patches else _frames, towers[entry.name]
        # With gradient checkpointing transformers makes embeddings require gradients, also of a
        # frozen tower, which would then keep its activations for nothing.
        with contextlib.nullcontext() if _learns(tower, visuals["patches"]) else torch.no_grad():
            seen[entry.name] = encode(config, entry, tower, visuals, len(counts[0]))
    return seen


def _learns(tower: nn.Module, pixels: torch.Tensor | None) -> bool:
    """Whether a gradient is wanted of the tower, or of pixels that somebody optimises."""
    wanted = pixels is not None and pixels.requires_grad
    return wanted or any(parameter.requires_grad for parameter in tower.parameters())


def _patches(
    config: LlavaConfig,
    entry: EncoderEntry,
    tower: nn.Module,
    visuals: Mapping[str, torch.Tensor | None],
    V: int,
) -> Seen:
    names = ("patches", "positions", "lengths", "grids")
    patches, positions, lengths, grids = (visuals[name] for name in names)
    if patches is None:
        return _nothing(entry, tower, V)
    if absent := [name for name in names if visuals[name] is None]:
        raise ValueError(f"visuals need {', '.join(absent)} beside their patches")
    there_V = lengths > 0
    if not bool(there_V.any()):
        return _nothing(entry, tower, V)
    statistics = (entry.image_mean, entry.image_std)
    features = encode_patches(
        entry.spec, tower, patches, positions, lengths[there_V], entry.select_layer, statistics
    )
    return Seen(features, positions, lengths, grids)


def _frames(
    config: LlavaConfig,
    entry: EncoderEntry,
    tower: nn.Module,
    visuals: Mapping[str, torch.Tensor | None],
    V: int,
) -> Seen:
    frames, counts_V = visuals["frames"], visuals["frame_counts"]
    if frames is None or counts_V is None:
        if frames is not None:
            raise ValueError("visuals need frame_counts beside their frames")
        return _nothing(entry, tower, V)
    rule = config.frame_rule
    assert rule is not None, "an encoder of frames has a rule for them"
    counts = counts_V.tolist()
    size = (rule.size, rule.size, 3)
    if frames.dtype != torch.uint8 or frames.shape != (sum(counts), *size):
        raise ValueError(
            f"frames must be uint8 {[sum(counts), *size]}, those that frame_counts = {counts} "
            f"states, got {frames.dtype} {list(frames.shape)}"
        )
    if odd := [count for count in counts if count not in (0, 1, rule.count)]:
        raise ValueError(
            f"a visual has {odd[0]} frames: videos have {rule.count}, images 1, and 0 are none"
        )
    clips = frames.split(counts)
    parts: dict[int, torch.Tensor] = {}
    for count in (1, rule.count):
        # Together, those of equal number; one visual's features don't depend on the others.
        which = [v for v, n in enumerate(counts) if n == count]
        if which and which[0] not in parts:
            stacked = torch.stack([clips[v] for v in which])
            found = encode_frames(entry.spec, tower, stacked, entry.frame_input)
            parts |= {v: x.flatten(0, 1) for v, x in zip(which, found, strict=True)}
    if not parts:
        return _nothing(entry, tower, V)
    features = torch.cat([parts[v] for v in sorted(parts)])
    return Seen(features, *frame_places(entry, counts_V.to(features.device)))


def _nothing(entry: EncoderEntry, tower: nn.Module, V: int) -> Seen:
    """Of an encoder that sees none of the visuals."""
    device = tower.device
    return Seen(
        torch.zeros(0, entry.width, dtype=tower.dtype, device=device),
        torch.zeros(0, 3, dtype=torch.long, device=device),
        torch.zeros(V, dtype=torch.long, device=device),
        torch.zeros(V, 2, dtype=torch.long, device=device),
    )


def unseen(config: LlavaConfig, seen: Mapping[str, Seen], mask_VE: torch.Tensor | None) -> bool:
    """Whether some encoder has no part in any visual: nothing would reach its parameters."""
    places = {name: x.places for name, x in seen.items()}
    return not all(bool(here_V.any()) for here_V in presence(config, places, mask_VE).values())


def idle_visual(config: LlavaConfig, device: torch.device) -> dict[str, torch.Tensor | None]:
    """The smallest visual that every encoder sees: 2 x 2 black patches, a black frame."""
    visual: dict[str, torch.Tensor | None] = dict.fromkeys(VISUALS)
    if (side := config.patch_size) is not None:
        places = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
        visual["positions"] = torch.tensor(places, device=device)
        visual["lengths"] = torch.tensor([4], device=device)
        visual["grids"] = torch.tensor([[2, 2]], device=device)
        visual["patches"] = torch.zeros(4, 3 * side**2, dtype=torch.uint8, device=device)
    if (rule := config.frame_rule) is not None:
        shape = (1, rule.size, rule.size, 3)
        visual["frames"] = torch.zeros(shape, dtype=torch.uint8, device=device)
        visual["frame_counts"] = torch.tensor([1], device=device)
    return visual
