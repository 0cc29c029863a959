"""Which encoders, and which fusion of them, can make one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...convert.hf.image_processing_onevision_encoder import CLIP_MEAN, CLIP_STD
from .fusion import FUSIONS

if TYPE_CHECKING:
    from .config import LlavaConfig

FUSION_QUERY = 3072
"""Width of MERV's learned query."""


def check_encoders(config: LlavaConfig) -> None:
    """Raises ValueError for encoders that do not fit each other, their fusion or the projector."""
    _check_fusion(config)
    if not config.encoders:
        return
    names = [entry.name for entry in config.encoders]
    if len(set(names)) < len(names):
        raise ValueError(f"encoders have the names {names}: each needs one of its own")
    own = {"vision_select_layer": -2, "image_mean": [*CLIP_MEAN], "image_std": [*CLIP_STD]}
    for name, default in own.items():
        if getattr(config, name) != default:
            raise ValueError(f"{name} has no effect beside encoders: give it to each of them")
    reading = [entry.name for entry in config.encoders if entry.reads_patches]
    if len(reading) > 1:
        raise ValueError(f"encoders {reading} read patches: only one of them may")
    resizes = {entry.resize for entry in config.encoders if not entry.reads_patches}
    if len(resizes) > 1:
        raise ValueError(
            f"encoders want resize = {sorted(resizes)}, but see the same frames: give all one"
        )
    _ = config.frame_rule  # raises where counts don't divide each other
    if not reading:
        _check_frames_only(config)
    if config.equal_tokens:
        _check_equal_tokens(config)
    if config.in_turn and config.timestamps:
        raise ValueError(
            f"timestamps has no effect on fusion = {config.fusion!r}, whose tokens are not in the "
            "order of time: set it to false"
        )


def _check_fusion(config: LlavaConfig) -> None:
    kind = config.fusion
    if kind not in FUSIONS:
        raise ValueError(f"fusion = {kind!r} must be one of {', '.join(FUSIONS)}")
    alone = len(config.encoders) < 2
    if config.fusion_bias and (alone or kind not in ("score", "mha_compat")):
        raise ValueError(f"fusion_bias has no effect on {_told(config)}: leave it out")
    if config.fusion_query != FUSION_QUERY and (alone or kind != "mha_compat"):
        raise ValueError(f"fusion_query has no effect on {_told(config)}: leave it out")
    if not isinstance(config.fusion_query, int) or config.fusion_query < 1:
        raise ValueError(f"fusion_query = {config.fusion_query!r} must be a positive integer")


def _told(config: LlavaConfig) -> str:
    return f"fusion = {config.fusion!r} of {max(len(config.encoders), 1)} encoders"


def _check_frames_only(config: LlavaConfig) -> None:
    for name, default in (("timestamps", False), ("image_size", 0)):
        if getattr(config, name) != default:
            raise ValueError(f"{name} has no effect where no encoder reads patches: leave it out")


def _check_equal_tokens(config: LlavaConfig) -> None:
    told = f"fusion = {config.fusion!r} needs equal numbers of tokens of all encoders: "
    if not config.always_pools:
        raise ValueError(f"{told}projector = {config.projector!r} must pool, as 3davg+linear does")
    if config.pool_level:
        raise ValueError(f"{told}set pool, not pool_level = {config.pool_level}")
    if config.pool_empty == "drop":
        raise ValueError(f"{told}pool_empty = 'drop' leaves cells out, take carry or learned")
