"""Pretraining by cluster discrimination: the story of one run, from top to bottom.

    codecvit train --config=src/configs/pretrain_video.py:records=records/codec --workdir=runs/video

(= python -m codecvit.trainers.pretrain ...). Any field of the configuration can be set behind it,
as in --config.optim.lr=3e-4. Run it again with the same --workdir and it goes on where it stopped:
parameters, optimiser, data position and every random draw. SIGTERM saves and exits 0.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import config_flags

from .. import __version__
from ..data.pipeline import Loader, make_loader
from ..data.records import RecordSet, load_labels
from . import mesh as meshes
from .checkpoints import Checkpoints
from .config import PretrainConfig
from .flops import head_flops_per_sample, peak_tflops, train_flops_per_token
from .metrics import MetricWriter, Throughput
from .probe import Probe
from .train_step import init_state, make_train_step


def pretrain(config: PretrainConfig, workdir: str | Path) -> dict[str, float]:
    """Runs or continues one pretraining run.

    Args:
      config: the run.
      workdir: its folder: config.json, metrics.jsonl, tensorboard/, checkpoints/STEP/.

    Returns:
      The metrics that were written last.

    Raises:
      ValueError: the configuration, a record set or an earlier checkpoint doesn't fit.
      TrainingStopped: too many non-finite steps or unreadable records.
    """
    mesh = meshes.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        return _run(config, Path(workdir), mesh)


def _run(config: PretrainConfig, workdir: Path, mesh: Mesh) -> dict[str, float]:
    workdir.mkdir(parents=True, exist_ok=True)
    first_process = jax.process_index() == 0
    stop = StopSignal()

    # --- Data ---------------------------------------------------------------------------------
    loaders = {name: open_source(config, name) for name in config.sources}
    probes = {name: Probe(probe, mesh) for name, probe in config.probes.items()}

    # --- State, laid out over the mesh ---------------------------------------------------------
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(lambda k: init_state(config, k), key)
    shardings = meshes.shard_tree(shapes, mesh, config.mesh)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]["encoder"]))

    # --- Checkpoint: an earlier one of this work directory comes first, else a fresh start --------
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    start_step = checkpoints.latest_step or 0
    if checkpoints.latest_step is None:
        state = jax.jit(lambda k: init_state(config, k), out_shardings=shardings)(key)
    else:
        abstract = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            shardings,
        )
        state, metadata = checkpoints.restore(abstract)
        for name, loader in loaders.items():
            loader.set_state(metadata["data"][name])
    if first_process:
        write_json(workdir / "config.json", config.to_dict())

    # --- Update step --------------------------------------------------------------------------
    train_step = jax.jit(make_train_step(config), donate_argnums=0, out_shardings=(shardings, None))

    # --- Bookkeeping --------------------------------------------------------------------------
    writer = MetricWriter(workdir, config.total_steps, start_step, active=first_process)
    writer.note(
        f"{num_params:,} encoder parameters, {mesh.size} {jax.devices()[0].device_kind} device(s), "
        + f"steps {start_step} to {config.total_steps}"
    )
    work = step_work(config)
    peak = config.peak_tflops or peak_tflops(jax.devices()[0])
    metrics: dict[str, float] = {}

    def save(step: int) -> None:
        checkpoints.save(
            step,
            state,
            {
                "config": config.to_dict(),
                "data": {name: loader.get_state() for name, loader in loaders.items()},
                "version": __version__,
            },
        )

    def evaluate(step: int) -> None:
        for name, probe in probes.items():
            if step % config.probes[name].every_steps == 0 or step == config.total_steps:
                results = probe(config.model, state["params"]["encoder"])
                writer.write(step, {f"probe/{name}/{key}": v for key, v in results.items()})

    # --- Train --------------------------------------------------------------------------------
    try:
        iterators = {name: iter(loader) for name, loader in loaders.items()}
        if start_step == 0:
            evaluate(0)
        throughput = Throughput()
        for step in range(start_step + 1, config.total_steps + 1):
            # The next batch is asked for only after the save below, so that the data position in a
            # checkpoint is that of the batches its state has seen. Do not reorder.
            asked = time.perf_counter()
            rows = {name: next(iterator) for name, iterator in iterators.items()}
            throughput.waited(time.perf_counter() - asked)
            batches = {
                name: meshes.put_batch(on_device(batch), mesh) for name, batch in rows.items()
            }

            state, step_metrics = train_step(state, batches)

            last = step == config.total_steps
            if step % config.log_steps == 0 or last:
                metrics = {f"train/{key}": float(v) for key, v in step_metrics.items()}
                metrics |= throughput.rates(**work, devices=mesh.size, peak_tflops=peak)
                for counter in ("nan_steps", "bad_records"):
                    metrics[f"train/{counter}"] = float(state[counter])
                writer.write(step, metrics)
                check_health(
                    config, step, int(state["nan_steps_in_row"]), int(state["bad_records"])
                )
            if stop.reached(step) and not last:
                save(step)
                writer.note(f"SIGTERM: saved step {step}, stopping")
                break
            # Before the save: a run that is killed while it evaluates does the step again.
            evaluate(step)
            if step % config.checkpoint.every_steps == 0 or last:
                save(step)
        if config.total_steps == 0:
            save(0)
    finally:
        for loader in loaders.values():
            loader.close()
        checkpoints.close()
        writer.close()
        stop.close()
    return metrics


class TrainingStopped(Exception):
    """A run ends itself because going on would waste time or spoil the model."""


class StopSignal:
    """SIGTERM of any process makes all of them stop at the same step."""

    def __init__(self) -> None:
        self._received = False
        self._earlier = None
        # With several processes jax.distributed owns the signal and agrees on a common step.
        if jax.process_count() == 1:
            self._earlier = signal.signal(signal.SIGTERM, self._receive)

    def reached(self, step: int) -> bool:
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def close(self) -> None:
        if self._earlier is not None:
            signal.signal(signal.SIGTERM, self._earlier)

    def _receive(self, *_: Any) -> None:
        self._received = True


def open_source(config: PretrainConfig, name: str) -> Loader:
    """The loader of one source, for the rows of this process."""
    source = config.sources[name]
    if source.batch_size % jax.sharding.get_abstract_mesh().size:
        raise ValueError(
            f"config.sources.{name}.batch_size = {source.batch_size} must be a multiple of the "
            f"{jax.sharding.get_abstract_mesh().size} devices"
        )
    records = RecordSet(source.records)
    labels, head = load_labels(records, source.labels), config.heads[source.head]
    if labels.num_classes > head.num_classes:
        raise ValueError(
            f"labels {source.labels!r} of {records.path} have {labels.num_classes} classes, but "
            f"config.heads.{source.head}.num_classes = {head.num_classes}"
        )
    return make_loader(
        records,
        batch_size=source.batch_size,
        budget=source.budget,
        labels=source.labels,
        labels_drawn=source.labels_drawn,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        worker_count=source.loader_workers,
    )


def on_device(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the step needs of a batch; the records' index stays on the host."""
    return {key: rows for key, rows in batch.items() if key != "index"}


def step_work(config: PretrainConfig) -> dict[str, float]:
    """Samples, tokens and analytic FLOPs of one step over all devices."""
    samples = tokens = flops = 0
    for source in config.sources.values():
        samples += source.batch_size
        tokens += source.batch_size * source.budget
        flops += source.batch_size * (
            source.budget * train_flops_per_token(config.model, source.budget)
            + head_flops_per_sample(config.model.width, config.heads[source.head].num_classes)
        )
    return {"samples": samples, "tokens": tokens, "flops": flops}


def check_health(
    config: PretrainConfig, step: int, nan_steps_in_row: int, bad_records: int
) -> None:
    """Stops a run that no longer trains, or that reads damaged data; all processes alike."""
    if nan_steps_in_row >= config.max_nan_steps:
        raise TrainingStopped(
            f"step {step}: loss or gradient not finite for {nan_steps_in_row} steps in a row "
            f"(config.max_nan_steps = {config.max_nan_steps}); the state is that of the last "
            "finite step. Lower config.optim.lr or lengthen config.optim.warmup_steps"
        )
    if bad_records > config.max_bad_records:
        raise TrainingStopped(
            f"step {step}: {bad_records} unreadable records so far "
            f"(config.max_bad_records = {config.max_bad_records}); pack the set again"
        )


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def main(argv: list[str]) -> int:
    """The verb `train`."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "config file, with arguments after a colon", flag_values=values
    )
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    if not argv or {"-h", "--help"} & set(argv):
        print(f"{__doc__}\nflags:\n{values.main_module_help()}")
        return 0 if argv else 2
    try:
        rest = values(["codecvit train", *argv])[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections raises any of these for a field that is unknown or of another type.
        print(f"codecvit train: {error}", file=sys.stderr)
        return 2
    if rest or values.config is None or values.workdir is None:
        print(
            f"codecvit train: --config and --workdir are needed; not understood: {rest}",
            file=sys.stderr,
        )
        return 2
    try:
        meshes.start_processes()
        config = PretrainConfig.from_dict(values.config.to_dict())
        pretrain(config, values.workdir)
    except (ValueError, TrainingStopped) as error:
        print(f"codecvit train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
