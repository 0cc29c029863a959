"""What config files of encoders share: the defaults of all that they leave out."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict, config_dict

from codecvit.configs.fields import add_field, add_fields
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
            add_field(values, field.name, config_dict.placeholder(int))
        elif field.default is not dataclasses.MISSING:
            add_field(values, field.name, field.default)


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
