"""Pretraining by cluster discrimination: the story of one run, from top to bottom.

    codecvit train --config=src/configs/pretrain_video.py:records=records/codec --workdir=runs/video

(= python -m codecvit.trainers.pretrain ...). Any field of the configuration can be set behind it,
as in --config.optim.lr=3e-4. Run it again with the same --workdir and it goes on where it stopped:
parameters, optimiser, data position and every random draw. SIGTERM saves and exits 0.

With --dry-run nothing is read or trained: it prints parameters, shardings, memory and FLOPs; with
--devices=N of a run on N devices, which need not be there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from .. import __version__
from . import mesh as meshes
from .checkpoints import Checkpoints, initialise, require_same_encoder
from .command import run_command
from .config import PretrainConfig
from .dry_run import dry_run
from .flops import peak_tflops
from .metrics import MetricWriter, Throughput
from .preemption import StopSignal, check_health
from .profiling import ProfileWindow, memory_peak_gib
from .record_probe import Probe
from .sources import Sources, on_device, source_tokens, step_work
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
        return train_on_mesh(config, Path(workdir), mesh)


def train_on_mesh(config: PretrainConfig, workdir: Path, mesh: Mesh) -> dict[str, float]:
    """`pretrain` on a mesh that is set already."""
    workdir.mkdir(parents=True, exist_ok=True)
    first_process = jax.process_index() == 0
    stop = StopSignal()

    # --- Data ---------------------------------------------------------------------------------
    sources = Sources(config)
    probes = {name: Probe(probe, mesh) for name, probe in config.probes.items()}

    # --- State, laid out over the mesh ---------------------------------------------------------
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(lambda k: init_state(config, k), key)
    shardings = meshes.shard_tree(shapes, mesh, config.mesh)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]["encoder"]))

    # --- Parameters: this work directory's checkpoint, else config.init's, else random ---------
    checkpoints = Checkpoints(workdir, config.checkpoint)
    state, metadata = checkpoints.restore(meshes.abstract(shapes, shardings))
    if state is None:
        state = jax.jit(lambda k: init_state(config, k), out_shardings=shardings)(key)
        if config.init.checkpoint:
            require_same_encoder(config.init.checkpoint, config.model)
            state = initialise(config.init, state)
    else:
        sources.set_state(metadata["data"])
    start_step = int(state["step"])
    if first_process:
        write_json(workdir / "config.json", config.to_dict())

    # --- Update step --------------------------------------------------------------------------
    train_step = jax.jit(make_train_step(config), donate_argnums=0, out_shardings=(shardings, None))

    # --- Bookkeeping --------------------------------------------------------------------------
    writer = MetricWriter(
        workdir,
        config.total_steps,
        start_step,
        active=first_process,
        wandb_project=config.wandb_project,
        config=config.to_dict(),
    )
    writer.note(
        f"{num_params:,} encoder parameters, {mesh.size} {jax.devices()[0].device_kind} device(s), "
        + f"steps {start_step} to {config.total_steps}"
    )
    profile = ProfileWindow(config.profile, workdir)
    peak = config.peak_tflops or peak_tflops(jax.devices()[0])
    metrics: dict[str, float] = {}

    def save(step: int) -> None:
        description = {"config": config.to_dict(), "version": __version__}
        checkpoints.save(step, state, {**description, "data": sources.get_state()})

    def evaluate(step: int) -> None:
        averaged = config.ema.enabled and config.ema.evaluate
        encoder = state["ema"] if averaged else state["params"]["encoder"]
        for name, probe in probes.items():
            if step % config.probes[name].every_steps == 0 or step == config.total_steps:
                results = probe(config.model, encoder)
                writer.write(step, {f"probe/{name}/{key}": v for key, v in results.items()})

    def log(step: int, step_metrics: dict[str, jax.Array]) -> dict[str, float]:
        found = {f"train/{key}": float(v) for key, v in step_metrics.items()}
        work = step_work(config, step)
        found |= throughput.rates(**work, devices=mesh.size, peak_tflops=peak)
        steps_per_second = 1 / found["perf/step_seconds"]
        for name, tokens in source_tokens(config, step).items():
            found[f"perf/{name}/tokens_per_second"] = tokens * steps_per_second
        for name, counts in sources.taken().items():
            # Of a mixture only: otherwise the step tells.
            found |= {f"data/{name}/set{i}": n for i, n in enumerate(counts) if len(counts) > 1}
        if (gib := memory_peak_gib()) is not None:
            found["perf/memory_peak_gib"] = gib
        for counter in ("nan_steps", "bad_records"):
            found[f"train/{counter}"] = float(state[counter])
        found["train/loss_spikes"] = float(state["loss_spikes"]["spikes"])
        writer.write(step, found)
        losses = ", ".join(f"{name} {found[f'train/{name}/loss']:.4g}" for name in config.sources)
        nan_steps, bad = int(state["nan_steps_in_row"]), int(state["bad_records"])
        check_health(config, step, nan_steps, bad, losses)
        return found

    # --- Train --------------------------------------------------------------------------------
    try:
        if start_step == 0:
            evaluate(0)
        throughput = Throughput()
        for step in range(start_step + 1, config.total_steps + 1):
            # The next batch is asked for only after the save below, so that the data position in a
            # checkpoint is that of the batches its state has seen. Do not reorder.
            asked = time.perf_counter()
            rows = sources.next(step)
            throughput.waited(time.perf_counter() - asked)
            batches = {name: meshes.put_batch(on_device(b), mesh) for name, b in rows.items()}

            with profile.begin(step):
                state, step_metrics = train_step(state, batches)
            profile.end(step, state)

            last = step == config.total_steps
            if step % config.log_steps == 0 or last:
                metrics = log(step, step_metrics)
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
        profile.close()
        sources.close()
        checkpoints.close()
        writer.close()
        stop.close()
    return metrics


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def main(argv: list[str]) -> int:
    """The verb `train`."""
    parse = PretrainConfig.from_dict
    return run_command("codecvit train", __doc__, parse, pretrain, argv, dry_run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
