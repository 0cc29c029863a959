"""The kinds of encoders by name: the one place that knows which there are."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_MAPPING
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .any_vision import ANY_VISION
from .internvideo2 import INTERNVIDEO2
from .languagebind import LANGUAGEBIND
from .onevision import ONEVISION
from .spec import EncoderSpec
from .vits import CLIP, DINOV2, SIGLIP, SIGLIP2, VIVIT

KINDS: dict[str, EncoderSpec] = {
    "onevision_encoder": ONEVISION,
    "clip": CLIP,
    "siglip": SIGLIP,
    "siglip2": SIGLIP2,
    "dinov2": DINOV2,
    "vivit": VIVIT,
    "languagebind_video": LANGUAGEBIND,
    "internvideo2": INTERNVIDEO2,
    "hf": ANY_VISION,
}
"""By kind."""


def register(kind: str, spec: EncoderSpec) -> None:
    """Adds a kind; models whose configuration names it need it registered before they are read.

    Raises:
      ValueError: there is one of this name.
    """
    if kind in KINDS:
        raise ValueError(f"the encoder kind {kind!r} is taken: choose another name")
    KINDS[kind] = spec


def spec_of(kind: str) -> EncoderSpec:
    """The entry of a kind.

    Raises:
      ValueError: there is none.
    """
    if kind not in KINDS:
        raise ValueError(f"encoder kind = {kind!r} must be one of {', '.join(sorted(KINDS))}")
    return KINDS[kind]


def config_of(kind: str, config: dict[str, Any] | PretrainedConfig) -> PretrainedConfig:
    """The configuration of a tower, from a dict with its `model_type` or any class that knows it.

    A configuration of text and vision together, as CLIP's folders have, gives its vision half.

    Raises:
      ValueError: this kind has no such `model_type`.
    """
    spec = spec_of(kind)
    if isinstance(config, tuple(known for known, _ in spec.classes)):
        return config
    stated = config if isinstance(config, dict) else config.to_dict()
    classes = {known.model_type: known for known, _ in spec.classes}
    model_type = stated.get("model_type")
    if model_type not in classes and isinstance(stated.get("vision_config"), dict):
        stated = stated["vision_config"]
        # The half of a known whole is what this kind reads, whatever it calls itself.
        model_type = spec.config_class.model_type if spec.classes else stated.get("model_type")
    if not spec.classes and model_type in CONFIG_MAPPING:
        classes = {model_type: CONFIG_MAPPING[model_type]}
    if model_type not in classes:
        known = ", ".join(classes) or "those that this transformers knows"
        raise ValueError(
            f"an encoder of kind {kind!r} has model_type {model_type!r}: it must be one of {known}"
        )
    # The folder's own code is not needed: the classes here are the same ones.
    dropped = ("auto_map", "model_type")
    return classes[model_type](**{k: v for k, v in stated.items() if k not in dropped})


def model_class_of(kind: str, config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class that a tower of this configuration has.

    Raises:
      ValueError: transformers has no model for it.
    """
    for known, model in spec_of(kind).classes:
        if type(config) is known:
            return model
    if type(config) not in MODEL_MAPPING:
        raise ValueError(
            f"transformers has no AutoModel for model_type {config.model_type!r}: an encoder of "
            f"kind {kind!r} needs one"
        )
    return MODEL_MAPPING[type(config)]


def build_tower(kind: str, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """A freshly drawn tower.

    Args:
      kind: of the encoder.
      config: what `config_of` gave.
      options: of `from_config`, such as `dtype` and `attn_implementation`.
    """
    model = model_class_of(kind, config)
    return model._from_config(config, **without_pooler(model), **options)


def without_pooler(model: type[PreTrainedModel]) -> dict[str, bool]:
    """The option by which a model leaves its pooling layer out, which no feature passes through."""
    accepted = inspect.signature(model.__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in accepted else {}
