"""The record sets of a pretraining run as loaders, and the work of its steps."""

from __future__ import annotations

from typing import Any

import jax

from ..data.on_the_fly import OnTheFly
from ..data.pipeline import Loader, make_loader
from ..data.records import RecordSet, load_labels
from .flops import head_flops_per_sample, train_flops_per_token
from .mesh import batch_part
from .pretrain_config import PretrainConfig, SourceConfig, buckets, current_phase
from .sources import Phase, Sources, source_seeds


def open_sources(config: PretrainConfig) -> Sources:
    """The data of a run. A mesh must be set.

    Raises:
      ValueError: a record set, its labels, a budget or a batch size doesn't fit.
    """
    opened, seeds = {}, source_seeds(config.seed, config.sources)
    for name, source in config.sources.items():
        opened[name] = {}
        for phase, bucket in buckets(source).items():
            where = f"{name}.phases.{phase}" if phase else name
            loader = _open(config, where, bucket, seeds[name])
            from_step = source.phases[phase].from_step if phase else 0
            opened[name][phase] = Phase(from_step, loader)
            if phase:
                loader.set_state(source.phases[phase].start_index)
    return Sources(opened)


def step_work(config: PretrainConfig, step: int) -> dict[str, Any]:
    """Samples, tokens (padding included) and analytic FLOPs of one step over all devices.

    Returns:
      `samples`, `tokens`, `flops`, and `source_tokens` with the tokens of each source.
    """
    samples = flops = 0
    tokens = {}
    for name, source in config.sources.items():
        bucket = buckets(source)[current_phase(source, step)]
        head = config.heads[source.head]
        samples += bucket.batch_size
        tokens[name] = bucket.batch_size * bucket.budget
        flops += bucket.batch_size * (
            bucket.budget * train_flops_per_token(config.model, bucket.budget)
            + head_flops_per_sample(config.model.width, head.sample_rate * head.num_classes)
        )
    total = sum(tokens.values())
    return {"samples": samples, "tokens": total, "flops": flops, "source_tokens": tokens}


def _open(config: PretrainConfig, name: str, source: SourceConfig, seed: int) -> Loader:
    mesh = jax.sharding.get_mesh()
    devices, (part, parts) = mesh.size, batch_part(mesh)
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
        seed=seed,
        shuffle_window=source.shuffle_window,
        process_index=part,
        process_count=parts,
        worker_count=source.loader_workers,
    )


def _record_set(source: SourceConfig, path: str) -> RecordSet:
    if source.videos:
        return OnTheFly(path, source.videos, source.budget, source.image_size)
    return RecordSet(path)
