"""The one encoder of a model that reads codec patches: our exports, from their folders.

What such an encoder is asked stands in `encoders.onevision`; several encoders, and those that read
frames, in `encoders.registry`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel

from ..encoders.loading import load_tower, pixel_statistics
from ..encoders.registry import KINDS
from ..encoders.spec import EncoderSpec

__all__ = ["encoder_of", "load_encoder", "pixel_statistics", "vision_config_of"]


def encoder_of(model_type: str | None) -> EncoderSpec:
    """The kind of encoder whose configurations have this type, of those that read patches.

    Raises:
      ValueError: there is none.
    """
    known = {
        config.model_type: spec
        for spec in KINDS.values()
        if spec.input == "patches"
        for config, _ in spec.classes
    }
    if model_type not in known:
        raise ValueError(
            f"the encoder has model_type {model_type!r}: it must be one of {sorted(known)}, "
            "which `codecvit export` writes"
        )
    return known[model_type]


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
      ValueError: `folder` has no config.json, one of an unknown model type, or weights that are not
        those of its configuration, each and every one.
    """
    path = Path(folder, "config.json")
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json: name a folder that `codecvit export` wrote")
    encoder_of(json.loads(path.read_text()).get("model_type"))
    return load_tower("onevision_encoder", folder, **options)
