"""The data of a run: one loader per source and phase, and which of them is at its turn."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ..data.on_the_fly import OnTheFly
from ..data.pipeline import Loader, make_loader
from ..data.records import RecordSet, load_labels
from .config import PretrainConfig, SourceConfig, buckets, current_phase
from .flops import head_flops_per_sample, train_flops_per_token

Rows = dict[str, np.ndarray]


class Sources:
    """Batches of every source of a run, for the rows of this process.

    Everything is opened at once, so that the data of a phase that begins in three weeks are found
    missing today. A mesh must be set.

    Args:
      config: the run.

    Raises:
      ValueError: a record set, its labels, a budget or a batch size doesn't fit.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self._sources = config.sources
        self._phase = dict.fromkeys(config.sources, "")
        self._loaders = {
            name: {
                phase: _open(config, f"{name}.phases.{phase}" if phase else name, bucket)
                for phase, bucket in buckets(source).items()
            }
            for name, source in config.sources.items()
        }
        for name, source in config.sources.items():
            for phase, value in source.phases.items():
                self._loaders[name][phase].set_state(value.start_index)

    def next(self, step: int) -> dict[str, Rows]:
        """The batches of step `step`, 1 for the first; steps come in order."""
        rows = {}
        for name, source in self._sources.items():
            phase = current_phase(source, step)
            if phase != self._phase[name]:
                self._loaders[name][self._phase[name]].close()
                self._phase[name] = phase
            rows[name] = next(self._loaders[name][phase])
        return rows

    def get_state(self) -> dict[str, Any]:
        """JSON: per source its phase and the examples that all processes have taken in it."""
        return {
            name: {"phase": phase, "examples": self._loaders[name][phase].get_state()}
            for name, phase in self._phase.items()
        }

    def taken(self) -> dict[str, list[int]]:
        """Per source the examples of each of its record sets taken in the present phase."""
        return {name: self._loaders[name][phase].taken() for name, phase in self._phase.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was asked.

        Raises:
          ValueError: a source or phase is not that of the state.
        """
        if state.keys() != self._phase.keys():
            raise ValueError(
                f"the checkpoint was written with the sources {sorted(state)}, the run has "
                f"{sorted(self._phase)}: restore their names, or start a new --workdir with "
                "config.init.checkpoint"
            )
        for name, place in state.items():
            if place["phase"] not in self._loaders[name]:
                raise ValueError(
                    f"the checkpoint is in phase {place['phase']!r} of config.sources.{name}, "
                    f"which has {sorted(self._loaders[name])}"
                )
            self._phase[name] = place["phase"]
            self._loaders[name][place["phase"]].set_state(place["examples"])

    def close(self) -> None:
        """Stops all workers; the state stays readable."""
        for loaders in self._loaders.values():
            for loader in loaders.values():
                loader.close()


def on_device(rows: Rows) -> Rows:
    """What the step needs of a batch; the records' index stays on the host."""
    return {key: values for key, values in rows.items() if key != "index"}


def source_tokens(config: PretrainConfig, step: int) -> dict[str, int]:
    """Tokens, padding included, of each source in one step over all devices."""
    now = {name: buckets(s)[current_phase(s, step)] for name, s in config.sources.items()}
    return {name: bucket.batch_size * bucket.budget for name, bucket in now.items()}


def step_work(config: PretrainConfig, step: int) -> dict[str, float]:
    """Samples, tokens and analytic FLOPs of one step over all devices."""
    samples = tokens = flops = 0
    for source in config.sources.values():
        bucket = buckets(source)[current_phase(source, step)]
        head = config.heads[source.head]
        samples += bucket.batch_size
        tokens += bucket.batch_size * bucket.budget
        flops += bucket.batch_size * (
            bucket.budget * train_flops_per_token(config.model, bucket.budget)
            + head_flops_per_sample(config.model.width, head.sample_rate * head.num_classes)
        )
    return {"samples": samples, "tokens": tokens, "flops": flops}


def _open(config: PretrainConfig, name: str, source: SourceConfig) -> Loader:
    devices = jax.sharding.get_abstract_mesh().size
    if source.batch_size % (devices * config.grad_accum_steps):
        raise ValueError(
            f"config.sources.{name}.batch_size = {source.batch_size} must be a multiple of the "
            f"{devices} devices times grad_accum_steps = {config.grad_accum_steps}"
        )
    head = config.heads[source.head]
    record_sets = [_record_set(source, path) for path in source.records.split("+")]
    for records in record_sets:
        labels = load_labels(records, source.labels)
        if labels.num_classes > head.num_classes:
            raise ValueError(
                f"labels {source.labels!r} of {records.path} have {labels.num_classes} classes, "
                f"but config.heads.{source.head}.num_classes = {head.num_classes}"
            )
    return make_loader(
        record_sets,
        weights=source.mix_weights or None,
        batch_size=source.batch_size,
        budget=source.budget,
        labels=source.labels,
        labels_drawn=source.labels_drawn,
        image_size=source.image_size,
        augment=source.augment,
        seed=config.seed,
        shuffle_window=source.shuffle_window,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        worker_count=source.loader_workers,
    )


def _record_set(source: SourceConfig, path: str) -> RecordSet:
    if source.videos:
        return OnTheFly(path, source.videos, source.budget, source.image_size)
    return RecordSet(path)
