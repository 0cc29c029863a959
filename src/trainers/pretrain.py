"""Pretraining by cluster discrimination: the story of one run, from top to bottom.

    codecvit train --config=src/configs/pretrain_video.py:records=records/codec --workdir=runs/video

(= python -m codecvit.trainers.pretrain ...). Any field of the configuration can be set behind it,
as in --config.optim.lr=3e-4. Run it again with the same --workdir and it goes on where it stopped:
parameters, optimiser, data position and every random draw. SIGTERM saves and exits 0. What happens
at each step stands in loop.py, what a step computes in pretrain_step.py.

With --dry-run nothing is read or trained: it prints parameters, shardings, memory and FLOPs; with
--devices=N of a run on N devices, which need not be there.
"""

from __future__ import annotations

import os
import sys

import jax
from jax.sharding import Mesh

from ..files import PathOrUrl, join, make_folder, write_json
from . import mesh as meshes
from .checkpoints import Checkpoints
from .command import run_command
from .dry_run import dry_run
from .loop import Loop
from .pretrain_config import PretrainConfig
from .pretrain_sources import open_sources, step_work
from .pretrain_step import init_state, make_train_step
from .probe.records import RecordProbe
from .start import count_parameters, start_state
from .update import State


def pretrain(config: PretrainConfig, workdir: PathOrUrl) -> dict[str, float]:
    """Runs or continues one pretraining run.

    Args:
      config: the run.
      workdir: its folder or gs:// URL: config.json, metrics.jsonl, tensorboard/,
        checkpoints/STEP/.

    Returns:
      The metrics that were written last.

    Raises:
      ValueError: the configuration, a record set or an earlier checkpoint doesn't fit.
      TrainingStopped: too many non-finite steps or unreadable records.
    """
    mesh = meshes.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        return train_on_mesh(config, os.fspath(workdir), mesh)


def train_on_mesh(config: PretrainConfig, workdir: str, mesh: Mesh) -> dict[str, float]:
    """`pretrain` on a mesh that is set already."""
    make_folder(workdir)

    # --- Data ---------------------------------------------------------------------------------
    sources = open_sources(config)
    probes = {name: RecordProbe(probe, mesh) for name, probe in config.probes.items()}

    # --- State: this work directory's checkpoint, else config.init's, else random --------------
    checkpoints = Checkpoints(workdir, config.checkpoint)
    state, shardings, position = start_state(
        config, mesh, checkpoints, lambda key: init_state(config, key), config.model
    )
    if position is not None:
        sources.set_state(position)
    if jax.process_index() == 0:
        write_json(join(workdir, "config.json"), config.to_dict())

    # --- Update step --------------------------------------------------------------------------
    train_step = jax.jit(make_train_step(config), donate_argnums=0, out_shardings=(shardings, None))

    # --- Evaluation ---------------------------------------------------------------------------
    def evaluate(step: int, state: State) -> dict[str, float]:
        averaged = config.ema.enabled and config.ema.evaluate
        encoder = state["ema"] if averaged else state["params"]["encoder"]
        found = {}
        for name, probe in probes.items():
            if step % config.probes[name].every_steps == 0 or step == config.total_steps:
                results = probe(config.model, encoder)
                found |= {f"probe/{name}/{key}": value for key, value in results.items()}
        return found

    # --- Train --------------------------------------------------------------------------------
    loop = Loop(
        config,
        workdir,
        mesh,
        sources,
        checkpoints,
        state,
        work=lambda step: step_work(config, step),
        evaluate=evaluate,
    )
    loop.note(
        f"{count_parameters(state['params']['encoder']):,} encoder parameters, {mesh.size} "
        f"{jax.devices()[0].device_kind} device(s), steps {int(state['step'])} to "
        f"{config.total_steps}"
    )
    return loop.run(train_step)


def main(argv: list[str]) -> int:
    """The verb `train`."""
    parse = PretrainConfig.from_dict
    return run_command("codecvit train", __doc__, parse, pretrain, argv, dry_run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
