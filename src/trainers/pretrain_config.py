"""The pretraining configuration: what a config file may say, checked once, then frozen.

A config file (src/configs) builds an ml_collections ConfigDict; `PretrainConfig.from_dict` turns it
into the dataclasses below and refuses unknown fields. Library code never sees a ConfigDict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ..config_values import build, require, unknown_field
from ..data.augment import AugmentConfig
from ..models.config import ViTConfig
from .run_config import GroupConfig, RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """From some step on, a source reads other data: another resolution, frame count or set.

    Attributes:
      from_step: the first step of the phase.
      start_index: the phase's own data begin at this example of their stream.
      records, budget, batch_size, image_size: take the place of the source's; None leaves it as it
        was.
    """

    from_step: int
    start_index: int = 0
    records: str | None = None
    budget: int | None = None
    batch_size: int | None = None
    image_size: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One record set, read with its own token budget (a bucket) and trained against one head.

    Attributes:
      records: folder of the record set, or of several joined by "+", which are mixed.
      mix_weights: share of each of several sets, up to a common factor; () goes by their sizes.
      videos: the files that the records were packed of: pack them anew in the workers, at
        `image_size` and `budget`, instead of reading the records (slow); "" reads the records.
      batch_size: samples of this source in one optimiser step, over all devices.
      budget: tokens per row; sequences are padded up to it.
      image_size: side in pixels at which images are seen; 0 takes the size that they were packed
        for.
      augment: random crops (images only) and flips.
      shuffle_window: records in a row among which the order is drawn, for remote sets that the
        cache cannot hold; 0: all.
      labels: name of a file labels/NAME.npy of the record set.
      labels_drawn: labels drawn per sample and step of the n that the file holds.
      head: name of the head, a key of `heads`.
      loss_weight: weight of this source's loss in the sum.
      loader_workers: worker processes that decode records; 0 decodes in the training process.
      phases: later buckets by name; each replaces the one before it at its `from_step`. They are
        kept in the order of their steps.
    """

    records: str
    batch_size: int
    budget: int
    image_size: int = 0
    augment: AugmentConfig = AugmentConfig()
    mix_weights: tuple[float, ...] = ()
    videos: str = ""
    shuffle_window: int = 0
    labels: str = "clusters"
    labels_drawn: int = 1
    head: str = "main"
    loss_weight: float = 1.0
    loader_workers: int = 0
    phases: Mapping[str, PhaseConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        # A ConfigDict hands its fields out by name.
        in_order = sorted(self.phases.items(), key=lambda item: item[1].from_step)
        object.__setattr__(self, "phases", dict(in_order))


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig(GroupConfig):
    """Class centres of one labelling, with their loss and their group of the optimiser.

    Attributes:
      num_classes: number of classes.
      margin, scale: CosFace's m and s (Wang et al. 2018, arXiv 1801.09414).
      filter_threshold: a non-target cosine above it becomes logit 0, without gradient.
      chunks: the class shard of a device is processed in this many pieces; more need less memory.
      sample_rate: share of the classes that a step's softmax runs over: those of the batch and a
        draw of the others; 1 takes all. Published: 0.1.
    """

    num_classes: int
    margin: float = 0.3
    scale: float = 64.0
    filter_threshold: float = 0.75
    chunks: int = 1
    sample_rate: float = 1.0


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
class PretrainConfig(RunConfig):
    """A pretraining run; what it shares with other runs stands in `RunConfig`.

    Attributes:
      model: the encoder; in the file `model.variant = "Ti/14"` and any field of ViTConfig.
      sources: named record sets; every step takes one batch of each.
      heads: named sets of class centres.
      grad_accum_steps: each batch is cut into this many pieces, whose gradients are averaged in
        float32 before the one optimiser step; memory is that of one piece.
      probes: by name, probes that run inside training.
    """

    model: ViTConfig
    sources: Mapping[str, SourceConfig]
    heads: Mapping[str, HeadConfig]
    grad_accum_steps: int = 1
    probes: Mapping[str, ProbeConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise ValueError("config.sources is empty: name at least one record set")
        require(self.grad_accum_steps >= 1, "config.grad_accum_steps", self.grad_accum_steps)
        for name, source in self.sources.items():
            self._check_source(f"config.sources.{name}", source)
        for name, head in self.heads.items():
            _check_head(f"config.heads.{name}", head)
        known = [f"heads/{name}" for name in sorted(self.heads)]
        for part in self.init.parts:
            if part not in known:
                raise ValueError(
                    f"config.init.parts names {part!r}; beside the encoder there are {known}"
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
        return build(cls, {**values, "model": model_config(model)}, "config")

    def _check_source(self, path: str, source: SourceConfig) -> None:
        if source.head not in self.heads:
            raise ValueError(
                f"{path}.head = {source.head!r} is not in config.heads: {sorted(self.heads)}"
            )
        require(source.labels_drawn >= 1, f"{path}.labels_drawn", source.labels_drawn)
        last_step = 0
        for name, phase in source.phases.items():
            require(
                phase.from_step > last_step,
                f"{path}.phases.{name}.from_step",
                phase.from_step,
                f"it must lie after step {last_step}, where the bucket before it begins",
            )
            require(phase.start_index >= 0, f"{path}.phases.{name}.start_index", phase.start_index)
            last_step = phase.from_step
        for name, bucket in buckets(source).items():
            where = f"{path}.phases.{name}" if name else path
            require(bucket.budget >= 1, f"{where}.budget", bucket.budget)
            require(bucket.batch_size >= 1, f"{where}.batch_size", bucket.batch_size)
            require(
                bucket.batch_size % self.grad_accum_steps == 0,
                f"{where}.batch_size",
                bucket.batch_size,
                f"it must be a multiple of grad_accum_steps = {self.grad_accum_steps}",
            )


def buckets(source: SourceConfig) -> dict[str, SourceConfig]:
    """The source as each of its phases sees it, in order; the first, named "", is the source."""
    made = {"": source}
    for name, phase in source.phases.items():
        changes = {
            field: value
            for field in ("records", "budget", "batch_size", "image_size")
            if (value := getattr(phase, field)) is not None
        }
        made[name] = dataclasses.replace(made[next(reversed(made))], **changes)
    return made


def current_phase(source: SourceConfig, step: int) -> str:
    """Name of the phase that step `step` (1 for the first) belongs to."""
    begun = [name for name, phase in source.phases.items() if phase.from_step <= step]
    return begun[-1] if begun else ""


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
            raise unknown_field(f"config.model.{key}", key, ["variant", *known])
    return ViTConfig(**values) if variant is None else ViTConfig.from_variant(variant, **values)


def _check_head(path: str, head: HeadConfig) -> None:
    head.check(path)
    ranges = {
        "num_classes": head.num_classes >= 2,
        "chunks": head.chunks >= 1,
        "sample_rate": 0 < head.sample_rate <= 1,
    }
    for field, inside in ranges.items():
        require(inside, f"{path}.{field}", getattr(head, field))
