"""Image-text training: contrastive, captioning, or both; the story of one run from top to bottom.

    codecvit train-pairs --config=src/configs/openvision.py:img=B/16,pairs=records:PAIRS,... \\
        --workdir=runs/B16

(= python -m codecvit.trainers.contrastive ...). Any field of the configuration can be set behind
it, as in --config.optim.lr=3e-4. Run it again with the same --workdir and it goes on where it
stopped. SIGTERM saves and exits 0. What happens at each step stands in loop.py, what a step
computes in contrastive_step.py.
"""

from __future__ import annotations

import os
import sys

import jax
from jax.sharding import Mesh

from ..data.tokenizers import open_tokenizer
from ..files import PathOrUrl, join, make_folder, write_json
from . import mesh as meshes
from .checkpoints import Checkpoints
from .command import run_command
from .contrastive_config import ContrastiveConfig
from .contrastive_sources import open_sources, require_vocabulary, step_work
from .contrastive_step import init_state, make_train_step
from .loop import Loop
from .pair_evaluation import PairEvaluations
from .start import count_parameters, start_state
from .update import State


def train_pairs(config: ContrastiveConfig, workdir: PathOrUrl) -> dict[str, float]:
    """Runs or continues one image-text run.

    Args:
      config: the run.
      workdir: its folder or gs:// URL: config.json, metrics.jsonl, tensorboard/,
        checkpoints/STEP/.

    Returns:
      The metrics that were written last.

    Raises:
      ValueError: configuration, pairs, tokenizer or an earlier checkpoint don't fit.
      TrainingStopped: too many non-finite steps or unreadable pairs.
    """
    mesh = meshes.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        return train_on_mesh(config, os.fspath(workdir), mesh)


def train_on_mesh(config: ContrastiveConfig, workdir: str, mesh: Mesh) -> dict[str, float]:
    """`train_pairs` on a mesh that is set already."""
    make_folder(workdir)

    # --- Data ---------------------------------------------------------------------------------
    tokenizer = open_tokenizer(config.tokenizer)
    require_vocabulary(config, tokenizer)
    sources = open_sources(config, tokenizer)
    evaluations = PairEvaluations(config, tokenizer, mesh)

    # --- State: this work directory's checkpoint, else config.init's, else random --------------
    checkpoints = Checkpoints(workdir, config.checkpoint)
    state, shardings, position = start_state(
        config, mesh, checkpoints, lambda key: init_state(config, key), config.model.vision
    )
    if position is not None:
        sources.set_state(position)
    if jax.process_index() == 0:
        write_json(join(workdir, "config.json"), config.to_dict())

    # --- Update step --------------------------------------------------------------------------
    train_step = jax.jit(make_train_step(config), donate_argnums=0, out_shardings=(shardings, None))

    # --- Train --------------------------------------------------------------------------------
    def evaluate(step: int, state: State) -> dict[str, float]:
        params = state["params"]
        if config.ema.enabled and config.ema.evaluate:
            params = {**params, "encoder": state["ema"]}
        return evaluations.due(step, params)

    loop = Loop(
        config,
        workdir,
        mesh,
        sources,
        checkpoints,
        state,
        work=lambda step: step_work(config),
        evaluate=evaluate,
    )
    counts = [f"{name} {count_parameters(part):,}" for name, part in state["params"].items()]
    loop.note(
        f"parameters: {', '.join(counts)}; "
        f"{mesh.size} {jax.devices()[0].device_kind} device(s), steps {int(state['step'])} to "
        f"{config.total_steps}"
    )
    return loop.run(train_step)


def main(argv: list[str]) -> int:
    """The verb `train-pairs`."""
    parse = ContrastiveConfig.from_dict
    return run_command("codecvit train-pairs", __doc__, parse, train_pairs, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
