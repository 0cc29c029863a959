"""The pretraining configuration: what a config file may say, checked once, then frozen.

A config file (src/configs) builds an ml_collections ConfigDict; `PretrainConfig.from_dict` turns it
into the dataclasses below and refuses unknown fields. Library code never sees a ConfigDict.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict, config_dict

from ..models.vit import ViTConfig

VARIANT_FIELDS = ("width", "depth", "num_heads", "mlp_dim", "patch")
"""Fields of ViTConfig that a variant such as "B/16" sets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One record set, read with its own token budget (a bucket) and trained against one head.

    Attributes:
      records: folder of the record set.
      batch_size: samples of this source in one step, over all devices.
      budget: tokens per row; sequences are padded up to it.
      labels: name of a file labels/NAME.npy of the record set.
      labels_drawn: labels drawn per sample and step of the n that the file holds.
      head: name of the head, a key of `heads`.
      loss_weight: weight of this source's loss in the sum.
      loader_workers: worker processes that decode records; 0 decodes in the training process.
    """

    records: str
    batch_size: int
    budget: int
    labels: str = "clusters"
    labels_drawn: int = 1
    head: str = "main"
    loss_weight: float = 1.0
    loader_workers: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Class centres of one labelling, with their loss and their part of the optimiser.

    Attributes:
      num_classes: number of classes.
      margin, scale: CosFace's m and s (Wang et al. 2018, arXiv 1801.09414).
      filter_threshold: a non-target cosine above it becomes logit 0, without gradient.
      chunks: the class shard of a device is processed in this many pieces; more need less memory.
      sample_rate: share of the classes that a step's softmax runs over: those of the batch and a
        draw of the others; 1 takes all. Published: 0.1.
      lr_mult: factor on the learning rate.
      weight_decay: decoupled weight decay of the centres.
      clip_norm: gradients of this head are clipped to this global norm.
      first_moment_dtype: float32, or bfloat16 to store Adam's first moment of the centres in half
        the memory.
    """

    num_classes: int
    margin: float = 0.3
    scale: float = 64.0
    filter_threshold: float = 0.75
    chunks: int = 1
    sample_rate: float = 1.0
    lr_mult: float = 1.0
    weight_decay: float = 0.05
    clip_norm: float = 5.0
    first_moment_dtype: str = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW or Muon with a warm-up and a named schedule.

    Attributes:
      name: "adamw", or "muon": the matrices of the blocks take orthogonalised momentum steps
        (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), all else AdamW.
      lr: peak learning rate.
      muon_lr: peak learning rate of the matrices, in units of their spectral norm.
      schedule: linear, cosine, poly2, rsqrt or constant (see `optim.SCHEDULES`).
      warmup_steps: steps of linear warm-up; step 0 already trains at lr/warmup_steps.
      weight_decay: decoupled decay of the encoder's kernels; norms, biases and the probe are exempt
        by name.
      b1, b2, eps: Adam's constants.
      clip_norm: encoder gradients are clipped to this global norm.
    """

    name: str = "adamw"
    lr: float = 1e-3
    muon_lr: float = 0.02
    schedule: str = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.05
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the device mesh's axes and the rules that shard parameters over them.

    Attributes:
      data, fsdp, tensor: axis sizes; one of them may be -1 and takes the devices that are left.
      rules: (regex, spec) pairs, first match wins: the regex is searched in a parameter's path, the
        spec names a mesh axis, several ("data,fsdp"), or "" per array dimension.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: tuple[tuple[str, tuple[str, ...]], ...] = (
        (r"heads/.*centres", ("data,fsdp,tensor", "")),
        (r"blocks/(attn/qkv|mlp/fc1)/kernel", ("", "fsdp", "tensor")),
        (r"blocks/(attn/out|mlp/fc2)/kernel", ("", "tensor", "fsdp")),
        (r"blocks/(attn/qkv|mlp/fc1)/bias", ("", "tensor")),
        (r"patch_embed/kernel", ("fsdp", "tensor")),
        (r"head/.*kernel", ("fsdp", "tensor")),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept.

    Attributes:
      every_steps: a checkpoint each so many steps; the last step always writes one.
      keep: the newest so many are kept.
    """

    every_steps: int = 1000
    keep: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """k-NN and linear probe of the pooled embedding, run inside training.

    Attributes:
      train_records, test_records: record sets; nothing of the test set is used to choose anything.
      labels: a labels/NAME.npy of both.
      every_steps: cadence; the first and the last step always probe.
      batch_size: samples embedded at once, over all devices.
    """

    train_records: str
    test_records: str
    labels: str
    every_steps: int = 1000
    batch_size: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A pretraining run.

    Attributes:
      model: the encoder; in the file `model.variant = "Ti/14"` and any field of ViTConfig.
      sources: named record sets; every step takes one batch of each.
      heads: named sets of class centres.
      total_steps: optimiser steps of the whole run.
      optim, mesh, checkpoint, probes: see their classes.
      seed: initialisation, order of the data and every draw.
      log_steps: metrics are fetched from the devices and written each so many steps.
      max_nan_steps: the run stops after so many non-finite steps in a row; each leaves the state as
        it was.
      max_bad_records: the run stops once more records than this were unreadable.
      peak_tflops: peak of one device in TFLOP/s for the MFU; 0 looks the device kind up.
    """

    model: ViTConfig
    sources: Mapping[str, SourceConfig]
    heads: Mapping[str, HeadConfig]
    total_steps: int
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    probes: Mapping[str, ProbeConfig] = dataclasses.field(default_factory=dict)
    seed: int = 0
    log_steps: int = 50
    max_nan_steps: int = 10
    max_bad_records: int = 100
    peak_tflops: float = 0.0

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("config.sources is empty: name at least one record set")
        for name, source in self.sources.items():
            if source.head not in self.heads:
                raise ValueError(
                    f"config.sources.{name}.head = {source.head!r} is not in config.heads: "
                    f"{sorted(self.heads)}"
                )
            for field in ("batch_size", "budget", "labels_drawn"):
                _require(getattr(source, field) >= 1, f"sources.{name}.{field}", source, field)
        for name, head in self.heads.items():
            _check_head(f"heads.{name}", head)
        _require(self.total_steps >= 0, "total_steps", self, "total_steps")
        _require(self.log_steps >= 1, "log_steps", self, "log_steps")
        _require(self.optim.lr > 0, "optim.lr", self.optim, "lr")
        _require(
            self.checkpoint.every_steps >= 1,
            "checkpoint.every_steps",
            self.checkpoint,
            "every_steps",
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PretrainConfig:
        """Checks a config file's values and freezes them.

        Args:
          values: nested mapping with the fields of the classes above.

        Raises:
          ValueError: a field is unknown, missing or of the wrong type; the message gives its dotted
            name.
        """
        values = dict(values)
        model = values.pop("model", None)
        if model is None:
            raise ValueError("config.model is missing: give at least model.variant, e.g. 'B/14'")
        return _build(cls, {**values, "model": model_config(model)}, "config")

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as JSON types; `from_dict` takes it back."""
        return dataclasses.asdict(self)


def add_defaults(config: ConfigDict) -> ConfigDict:
    """Gives a config file's ConfigDict every field that it may have, so that any can be overridden.

    Args:
      config: what a `get_config` has set.

    Returns:
      The same object; ml_collections lets the command line change only fields that exist.
    """
    for name, value in _defaults(PretrainConfig).items():
        _add(config, name, value)
    for group, kind in (("sources", SourceConfig), ("heads", HeadConfig), ("probes", ProbeConfig)):
        for values in config[group].values():
            for name, value in _defaults(kind).items():
                _add(values, name, value)
    for field in dataclasses.fields(ViTConfig):
        # What the variant says is left open: a number given on the command line overrides it.
        from_variant = field.name in VARIANT_FIELDS
        default = config_dict.placeholder(int) if from_variant else field.default
        _add(config.model, field.name, default)
    return config


def _defaults(kind: type) -> dict[str, Any]:
    """Fields of a dataclass that have a default, as plain types."""
    made = {}
    for field in dataclasses.fields(kind):
        if field.default_factory is not dataclasses.MISSING:
            made[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            value = field.default
            made[field.name] = (
                dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
            )
    return made


def _add(owner: ConfigDict, name: str, value: Any) -> None:
    if name not in owner:
        owner[name] = ConfigDict(value) if isinstance(value, dict) else value
    elif isinstance(value, dict):
        for key, item in value.items():
            _add(owner[name], key, item)


def model_config(values: Mapping[str, Any] | ViTConfig) -> ViTConfig:
    """A ViTConfig from a config file's `model` section or from a checkpoint's resolved one.

    `dtype = "auto"` becomes float32 on a CPU, whose bfloat16 is slow, and bfloat16 elsewhere.
    """
    if isinstance(values, ViTConfig):
        return values
    values = {key: value for key, value in values.items() if value is not None}
    variant = values.pop("variant", None)
    if values.get("dtype") == "auto":
        values["dtype"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    known = [field.name for field in dataclasses.fields(ViTConfig)]
    for key in values:
        if key not in known:
            raise _unknown(f"config.model.{key}", key, ["variant", *known])
    return ViTConfig(**values) if variant is None else ViTConfig.from_variant(variant, **values)


def _build(kind: type, values: Any, path: str) -> Any:
    """Recursively makes dataclass `kind` of a mapping, naming the dotted path of what is wrong."""
    if isinstance(values, kind):
        return values
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} must be a mapping of fields, got {type(values).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise _unknown(f"{path}.{key}", key, list(fields))
    made = {key: _convert(hints[key], value, f"{path}.{key}") for key, value in values.items()}
    no_default = dataclasses.MISSING
    for name, field in fields.items():
        if name not in made and field.default is no_default and field.default_factory is no_default:
            raise ValueError(f"{path}.{name} is missing")
    return kind(**made)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    if origin is not None and issubclass(origin, Mapping):
        return {key: _convert(args[1], item, f"{path}.{key}") for key, item in dict(value).items()}
    if origin is tuple:
        return tuple(_freeze(item) for item in value)
    if isinstance(hint, types.UnionType):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{path} = {value!r} must be of type {hint.__name__}")
    return value


def _freeze(value: Any) -> Any:
    return tuple(map(_freeze, value)) if isinstance(value, (list, tuple)) else value


def _unknown(path: str, key: str, known: list[str]) -> ValueError:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
    return ValueError(f"{path} is no field{hint}")


def _check_head(path: str, head: HeadConfig) -> None:
    ranges = {
        "num_classes": head.num_classes >= 2,
        "chunks": head.chunks >= 1,
        "sample_rate": 0 < head.sample_rate <= 1,
        "clip_norm": head.clip_norm > 0,
        "first_moment_dtype": head.first_moment_dtype in ("float32", "bfloat16"),
    }
    for field, inside in ranges.items():
        _require(inside, f"{path}.{field}", head, field)


def _require(condition: bool, path: str, owner: Any, field: str) -> None:
    if not condition:
        raise ValueError(f"config.{path} = {getattr(owner, field)!r} is out of range")
