"""Training of a LLaVA model: the story of one run, from top to bottom.

    codecvit llava train --workdir=runs/projector \\
        --config=src/configs/llava.py:stage=projector,encoder=DIR,lm=DIR,data=RECIPE.yaml
    accelerate launch --multi_gpu -m codecvit llava train --workdir=... --config=...

Any field of the configuration can be set behind it, as in --config.optim.lr=3e-4. Run it again with
the same --workdir and it goes on where it stopped: weights, optimiser, data position and every
random draw. SIGTERM saves and exits 0. --init-projector FILE starts from a projector's weights.

One process needs no launcher; several GPUs and nodes, FSDP2 included, go by `accelerate launch`
(docs/llava_training.md).
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from .checkpoints import (
    digests,
    latest_checkpoint,
    read_state,
    require_same_run,
    restore_checkpoint,
)
from .command import StopSignal, run_command
from .config import LlavaTrainConfig
from .data import TrainingData
from .finish import finish_run
from .loop import Loop
from .optim import make_optimizer
from .processes import describe, hold_frozen, start_processes
from .start import CONFIG, MODEL, prepare_training, start_model, start_tokenizer


def train(config: LlavaTrainConfig, workdir: str | Path) -> dict[str, float]:
    """Runs or continues one training run.

    Args:
      config: the run.
      workdir: its folder: config.json, metrics.jsonl, tensorboard/, failures/, checkpoints/STEP/
        and, at its end, model/ and with LoRA adapter/.

    Returns:
      The metrics that were written last.

    Raises:
      ValueError: the configuration, data, an earlier run or checkpoint don't fit, or the loss is
        not finite for too long.
      TooManyFailures: too many rows cannot be used.
    """
    stop = StopSignal()
    try:
        return _train(config, Path(workdir), stop)
    finally:
        stop.close()


def _train(config: LlavaTrainConfig, workdir: Path, stop: StopSignal) -> dict[str, float]:
    accelerator = start_processes(config)
    world, rank = accelerator.num_processes, accelerator.process_index

    # --- Model: new parts or an earlier stage; what is not trained is frozen ---------------------
    model, tokenizer = start_model(config), start_tokenizer(config)
    prepare_training(model, config)
    base = digests(model)
    hold_frozen(model, accelerator)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    # --- Data ------------------------------------------------------------------------------------
    on_gpu = accelerator.device.type == "cuda"
    data = TrainingData(config, tokenizer, model.config, world, rank, pin_memory=on_gpu)
    model.config.assets_hash = data.assets_hash or model.config.assets_hash
    total_steps = config.steps or math.ceil(config.epochs * data.steps_per_epoch)

    # --- Optimiser; both spread as the launcher says; then this work directory's checkpoint ------
    optimizer = make_optimizer(model, config.optim)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    about = {"config": config.to_dict(), "base": base, "data": data.digest, "processes": world}
    about["assets_hash"] = model.config.assets_hash
    # Their folders may have moved; what they are and how they are fed may not change.
    about["encoders"] = [entry.summary for entry in model.config.encoders]
    earlier: dict[str, Any] = {}
    if folder := latest_checkpoint(workdir):
        earlier = read_state(folder)
        require_same_run(earlier, about, folder)
        restore_checkpoint(folder, model, optimizer.optimizer)
    if accelerator.is_main_process:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / CONFIG).write_text(json.dumps(config.to_dict(), indent=1) + "\n")

    # --- Train -----------------------------------------------------------------------------------
    loop = Loop(
        config, workdir, accelerator, model, wrapped, optimizer, about, earlier, total_steps
    )
    loop.note(f"{describe(model, accelerator)}; steps {loop.start_step} to {total_steps}")
    finished, metrics = loop.run(data.steps(loop.start_step), stop)

    # --- A complete model folder, made of the last checkpoint -------------------------------------
    if finished and accelerator.is_main_process and not (workdir / MODEL).exists():
        print(f"model: {finish_run(workdir)}")
    accelerator.end_training()
    return metrics


def main(argv: list[str]) -> int:
    """The verb `llava train`."""
    return run_command(__doc__, train, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
