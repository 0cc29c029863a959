"""Training of a LLaVA model on an exported encoder, in the stages of the published recipe.

    C=src/configs/llava.py
    codecvit llava train --workdir=runs/projector --config=$C:stage=projector,encoder=E,lm=LM,data=D
    codecvit llava train --workdir=runs/sft --config=$C:stage=sft,init=runs/projector,data=R.yaml
    codecvit llava train --workdir=runs/lora --config=$C:stage=lora,init=runs/projector,data=R.yaml

or scripts/llava/{pretrain_projector,sft,sft_lora}.sh, which launch several processes. Arguments:
stage; encoder, an export; lm, a causal language model; or init, an earlier run or a model; data, a
recipe or one JSON or JSONL file; root, what its paths are relative to; batch, rows of a step, and
micro, rows of a process at once (0 takes the stage's); epochs; steps, of a fixed length instead;
seed; runlocal, for a few steps of small rows on a CPU. preset takes encoders, language model and
rates of a published recipe, with towers and pool_level, see llava_presets.py.

| stage | trains | rate | batch | schedule |
|---|---|---|---|---|
| projector | projector | 1e-3 | 256 | cosine, warm-up 0.03 |
| sft | all; the encoder at 2e-6 | 1e-5 | 128 | linear, no warm-up |
| lora | adapter r 128, alpha 256; projector at 2e-5 | 2e-4 | 128 | cosine, warm-up 0.03 |

projector and sft: OneVision-Encoder's pretrain_ov_encoder.sh and sft_ov_encoder.sh (558k captions;
800k codec and frame videos with 800k images); lora: LLaVA-1.5's. Weight decay 0, clip 1.0, bf16 on
GPUs. Expected result: the projector stage ends well below the loss of text alone; no published
numbers exist for the others, and none has been measured with this file yet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from codecvit.configs.fields import add_fields, parse_arg
from codecvit.configs.llava_presets import apply_preset, stage_of
from codecvit.llava.training.config import (
    CheckpointOptions,
    DataOptions,
    LlavaTrainConfig,
    LoraOptions,
    ModelOptions,
    OptimOptions,
)

GROUPS = {
    "model": ModelOptions,
    "data": DataOptions,
    "optim": OptimOptions,
    "lora": LoraOptions,
    "checkpoint": CheckpointOptions,
}
STAGES = {
    "projector": {
        "batch_size": 256,
        "micro_batch_size": 16,
        "model": {"template": "plain"},
        "data": {"max_length": 8192},
        "optim": {"lr": 1e-3, "vision_tower_lr": 0.0, "language_model_lr": 0.0},
    },
    "sft": {
        "batch_size": 128,
        "micro_batch_size": 1,
        "optim": {"lr": 1e-5, "vision_tower_lr": 2e-6, "schedule": "linear", "warmup": 0.0},
    },
    "lora": {
        "batch_size": 128,
        "micro_batch_size": 1,
        "optim": {"lr": 2e-4, "vision_tower_lr": 0.0, "projector_lr": 2e-5},
        "lora": {"rank": 128, "alpha": 256.0, "dropout": 0.05},
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The configuration; see the file's docstring for `arg`."""
    arg = parse_arg(
        arg,
        stage="",
        preset="",
        encoder="",
        lm="",
        towers="",
        pool_level=0,
        init="",
        data="",
        root="",
        batch=0,
        micro=0,
        epochs=1.0,
        steps=0,
        seed=0,
        runlocal=False,
    )
    stage = stage_of(arg.preset, arg.stage) if arg.preset else arg.stage or "projector"
    if stage not in STAGES:
        raise ValueError(f"stage = {stage!r} must be one of {', '.join(STAGES)}")
    config = ConfigDict(STAGES[stage])
    for group, kind in GROUPS.items():
        config[group] = config.get(group, ConfigDict())
        add_fields(config[group], kind)
    add_fields(config, LlavaTrainConfig)
    config.model.update(encoder=arg.encoder, language_model=arg.lm)
    config.data.update(recipe=arg.data, root=arg.root)
    config.update(init=arg.init, epochs=arg.epochs, steps=arg.steps, seed=arg.seed)
    if arg.preset:
        apply_preset(config, arg.preset, stage, arg.towers, arg.pool_level)
    elif arg.towers or arg.pool_level:
        raise ValueError("towers and pool_level belong to a preset: name it, or set config.model")
    if arg.runlocal:
        config.update(batch_size=8, micro_batch_size=4, steps=arg.steps or 20, log_steps=1)
        config.update(gradient_checkpointing=False)
        config.data.workers = 0
    config.batch_size = arg.batch or config.batch_size
    config.micro_batch_size = arg.micro or config.micro_batch_size
    return config
