"""Encoders of visuals: the one place that knows what an encoder folder holds.

Shape suffixes: L patches of all visuals together, V visuals, K = P*P*3 values of a patch, D width.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel

from ..convert.hf.configuration_onevision_encoder import OneVisionEncoderConfig
from ..convert.hf.modeling_onevision_encoder import (
    OneVisionEncoderModel,
    packed_layout,
    rotary_tables,
)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What the model asks of an encoder.

    Attributes:
      config_class: its configuration, with `hidden_size`, `patch_size` and `num_hidden_layers`.
      model_class: its model.
      features: (tower, pixels [L, K], positions [L, 3], lengths [V], layer) -> features [L, D].
      used: (tower, layer) -> the modules whose parameters the features depend on.
    """

    config_class: type[PretrainedConfig]
    model_class: type[PreTrainedModel]
    features: Callable[..., torch.Tensor]
    used: Callable[..., Iterator[nn.Module]]


def _blocks(tower: OneVisionEncoderModel, layer: int) -> nn.ModuleList:
    """The blocks before the hidden state `layer`; 0 and -(depth + 1) are the embeddings."""
    layers = tower.encoder.layers
    return layers[: layer if layer >= 0 else len(layers) + 1 + layer]


def _onevision_features(
    tower: OneVisionEncoderModel,
    pixels_LK: torch.Tensor,
    positions_L3: torch.Tensor,
    lengths_V: torch.Tensor,
    layer: int,
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
    return x_1LD[0]


def _onevision_used(tower: OneVisionEncoderModel, layer: int) -> Iterator[nn.Module]:
    yield tower.embeddings
    yield tower.layernorm_pre
    yield from _blocks(tower, layer)


ENCODERS = {
    "onevision_encoder": Encoder(
        OneVisionEncoderConfig, OneVisionEncoderModel, _onevision_features, _onevision_used
    ),
}
"""By `model_type` of the encoder's configuration file."""


def encoder_of(model_type: str | None) -> Encoder:
    """The entry of a model type.

    Raises:
      ValueError: there is none.
    """
    if model_type not in ENCODERS:
        raise ValueError(
            f"the encoder has model_type {model_type!r}: it must be one of {sorted(ENCODERS)}, "
            "which `codecvit export` writes"
        )
    return ENCODERS[model_type]


def vision_config_of(config: dict[str, Any] | PretrainedConfig) -> PretrainedConfig:
    """A dict, or a configuration of any class with a known `model_type`, as our own class."""
    known = config if isinstance(config, dict) else config.to_dict()
    config_class = encoder_of(known.get("model_type")).config_class
    if isinstance(config, config_class):
        return config
    # The folder's own code is not needed: the classes here are the same ones.
    return config_class(**{k: v for k, v in known.items() if k not in ("auto_map", "model_type")})


def load_encoder(folder: str | Path, **options: Any) -> PreTrainedModel:
    """The encoder of an export folder, without running the folder's own code.

    Args:
      folder: what `codecvit export` wrote.
      options: of `from_pretrained`, such as `dtype`.

    Raises:
      ValueError: `folder` has no config.json, or one of an unknown model type.
    """
    encoder = encoder_of(_read(folder, "config.json").get("model_type"))
    tower = encoder.model_class.from_pretrained(folder, **options)
    if hasattr(tower.config, "auto_map"):
        del tower.config.auto_map  # it names files that a folder of the whole model doesn't have
    return tower


def pixel_statistics(folder: str | Path) -> dict[str, list[float]]:
    """`image_mean` and `image_std` of the folder's preprocessor_config.json; {} without one."""
    if not Path(folder, "preprocessor_config.json").is_file():
        return {}
    processor = _read(folder, "preprocessor_config.json")
    return {name: processor[name] for name in ("image_mean", "image_std") if name in processor}


def _read(folder: str | Path, name: str) -> dict[str, Any]:
    path = Path(folder, name)
    if not path.is_file():
        raise ValueError(f"{folder} has no {name}: name a folder that `codecvit export` wrote")
    return json.loads(path.read_text())
