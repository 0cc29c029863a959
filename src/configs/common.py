"""What config files share: their arguments, and the defaults of all that they leave out."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from ml_collections import ConfigDict, config_dict

from codecvit.models.captioning import CaptionConfig
from codecvit.models.config import ViTConfig
from codecvit.models.text import TextConfig
from codecvit.trainers.contrastive_config import (
    TOWERS,
    ContrastiveConfig,
    PairSourceConfig,
    RetrievalConfig,
    ZeroShotConfig,
)
from codecvit.trainers.pretrain_config import (
    HeadConfig,
    PhaseConfig,
    PretrainConfig,
    ProbeConfig,
    SourceConfig,
)
from codecvit.trainers.run_config import GroupConfig

PUBLISHED_AUGMENT = {"crop_area": (0.7, 1.0), "crop_aspect": (0.8, 1.25), "flip": 0.5}
"""Of single images in the published runs; images with text and videos are shown as they are."""

VARIANT_FIELDS = ("width", "depth", "num_heads", "mlp_dim", "patch")
"""Fields of a model's config that a variant such as "B/16" sets."""


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Parses what stands after the colon in `--config=FILE.py:name=value,flag`.

    Args:
      arg: the string after the colon; None or "" gives the defaults.
      **defaults: every known name with its default, whose type the value takes; a bool may be given
        as a bare name.

    Raises:
      ValueError: an unknown name, or a value that is not of its default's type.
    """
    values = ConfigDict(defaults)
    for part in (arg or "").split(","):
        if not part:
            continue
        name, _, text = part.partition("=")
        if name not in defaults:
            raise ValueError(f"config argument {name!r} is unknown; known: {', '.join(defaults)}")
        kind = type(defaults[name])
        if kind is bool:
            if text.lower() not in ("", "true", "false", "1", "0"):
                raise ValueError(f"config argument {name}={text} must be true or false")
            values[name] = text.lower() in ("", "true", "1")
            continue
        try:
            values[name] = kind(text)
        except ValueError as error:
            raise ValueError(
                f"config argument {name}={text} must be of type {kind.__name__}"
            ) from error
    return values


def add_defaults(config: ConfigDict) -> ConfigDict:
    """Fills a config file's ConfigDict up with the defaults of everything that it leaves out.

    Args:
      config: what a `get_config` has set.

    Returns:
      The same object; ml_collections lets the command line change only fields that exist.
    """
    add_fields(config, PretrainConfig)
    for source in config.sources.values():
        add_fields(source, SourceConfig)
        for phase in source.phases.values():
            add_fields(phase, PhaseConfig)
    for group, kind in (("heads", HeadConfig), ("probes", ProbeConfig)):
        for values in config[group].values():
            add_fields(values, kind)
    add_model_fields(config.model, ViTConfig)
    return config


def add_pair_defaults(config: ConfigDict) -> ConfigDict:
    """`add_defaults` for the config file of an image-text run."""
    add_fields(config, ContrastiveConfig)
    kinds = {
        "sources": PairSourceConfig,
        "groups": GroupConfig,
        "zero_shot": ZeroShotConfig,
        "retrieval": RetrievalConfig,
    }
    for group, kind in kinds.items():
        for values in config[group].values():
            add_fields(values, kind)
    towers = {"vision": TOWERS[config.model.tower], "text": TextConfig, "decoder": CaptionConfig}
    for name, kind in towers.items():
        if config.model[name] is not None:
            add_model_fields(config.model[name], kind)
    return config


def add_model_fields(values: ConfigDict, kind: type) -> None:
    """Adds the fields of a model's config; what its variant says is left open.

    A number that is given on the command line then overrides the variant's.
    """
    for field in dataclasses.fields(kind):
        if field.name in VARIANT_FIELDS:
            _add(values, field.name, config_dict.placeholder(int))
        elif field.default is not dataclasses.MISSING:
            _add(values, field.name, field.default)


def add_fields(values: ConfigDict, kind: type) -> None:
    """Adds the fields of a dataclass that have a default and that `values` leaves out."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.default_factory is not dataclasses.MISSING:
            _add(values, field.name, field.default_factory())
        elif dataclasses.is_dataclass(field.default):
            _add(values, field.name, dataclasses.asdict(field.default))
        elif isinstance(hints[field.name], types.UnionType):  # X | None, of type X once it is set
            _add(values, field.name, config_dict.placeholder(typing.get_args(hints[field.name])[0]))
        elif field.default is not dataclasses.MISSING:
            _add(values, field.name, field.default)


def _add(owner: ConfigDict, name: str, value: Any) -> None:
    if name not in owner:
        owner[name] = ConfigDict(value) if isinstance(value, dict) else value
    elif isinstance(value, dict):
        for key, item in value.items():
            _add(owner[name], key, item)


def published_optim(lr: float, warmup_steps: int) -> ConfigDict:
    """The optimiser of the published OneVision-Encoder runs: AdamW, linear decay, decay 0.05.

    They clip at 5 a gradient that is 8 times (their number of labels) that of the loss; ours is
    that of the loss.
    """
    return ConfigDict(
        {
            "lr": lr,
            "warmup_steps": warmup_steps,
            "schedule": "linear",
            "weight_decay": 0.05,
            "clip_norm": 5.0 / 8,
        }
    )


def published_head(num_classes: int) -> dict[str, Any]:
    """The head of the published runs: a tenth of the classes, margin 0.3, scale 64, filter 0.75.

    They clip each device's share of the centres at 5, of a gradient 8 times ours: over 64 devices
    with equal shares that is our 5 over all of them.
    """
    return {
        "num_classes": num_classes,
        "margin": 0.3,
        "scale": 64.0,
        "filter_threshold": 0.75,
        "sample_rate": 0.1 if num_classes >= 10_000 else 0.5,
        "weight_decay": 0.05,
        "clip_norm": 5.0,
    }
