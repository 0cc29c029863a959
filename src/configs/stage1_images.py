"""Stage 1: single images against cluster centres, first at 224 pixels, then at 448.

    codecvit pack IMAGES --out records --size 224
    codecvit cluster records/image --features features.npy ... --name clusters --k 2000000 --n 10
    codecvit train --config=src/configs/stage1_images.py:variant=L/14 --workdir=runs/L224
    codecvit train --config=src/configs/stage1_images.py:variant=L/14,size=448,init=runs/L224 \
        --workdir=runs/L448

On this machine, in a minute, with made data (LOCAL=1 bash scripts/pretrain/train.sh makes them):

    codecvit train --config=src/configs/stage1_images.py:runlocal --workdir=runs/stage1

Arguments: variant (B/14, L/14 or H/14), size (224 or 448), records, classes, init (a run to start
from, its head included), fsdp, accumulate, runlocal.
Hyper-parameters: those of the published runs (docs/pretraining.md has their sources and what was
corrected). H/14 and B/14 at 448 were not published: they take over those of L/14.
Cost, an estimate (docs/chip_hours.md: analytic FLOPs at 40 % of an H200's peak): 1,260 GPU hours
for B, 4,420 for L, 9,120 for H at 224 pixels (13 billion images); 583, 1,980 and 4,000 at 448 (1.3
billion). Expected result: none yet, nothing of that size has been run with this file.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from codecvit.configs.common import (
    PUBLISHED_AUGMENT,
    add_defaults,
    published_head,
    published_optim,
)
from codecvit.configs.fields import parse_arg

# variant -> (samples in a batch, learning rate, warm-up as a share of the steps)
RECIPES = {
    224: {"B/14": (1024, 1e-3, 0.1), "L/14": (24_576, 6e-4, 0.05), "H/14": (24_576, 6e-4, 0.05)},
    448: {"B/14": (32_768, 1e-4, 0.01), "L/14": (32_768, 1e-4, 0.01), "H/14": (32_768, 1e-4, 0.01)},
}
SAMPLES = {224: 13_000_000_000, 448: 1_300_000_000}


def get_config(arg: str | None = None) -> ConfigDict:
    """The configuration; see the file's docstring for `arg`."""
    arg = parse_arg(
        arg,
        variant="L/14",
        size=224,
        records="",
        classes=2_000_000,
        init="",
        fsdp=1,
        accumulate=1,
        runlocal=False,
    )
    if arg.runlocal:
        return _runlocal(arg)
    if arg.size not in RECIPES or arg.variant not in RECIPES[arg.size]:
        raise ValueError(
            f"config arguments variant={arg.variant}, size={arg.size}: there are recipes for "
            f"{', '.join(RECIPES[224])} at {' and '.join(map(str, RECIPES))}"
        )
    batch_size, lr, warmup = RECIPES[arg.size][arg.variant]
    steps = SAMPLES[arg.size] // batch_size
    config = ConfigDict()
    config.model = ConfigDict({"variant": arg.variant, "dtype": "auto"})
    source = {
        "records": arg.records or "records/image",
        "batch_size": batch_size,
        "budget": (arg.size // int(arg.variant.split("/")[1])) ** 2,
        "image_size": arg.size,
        "augment": PUBLISHED_AUGMENT,
        "labels_drawn": 8,
        "head": "images",
        "loader_workers": 16,
    }
    config.sources = ConfigDict({"images": source})
    config.heads = ConfigDict({"images": published_head(arg.classes)})
    config.optim = published_optim(lr, warmup_steps=int(warmup * steps))
    config.total_steps = steps
    config.grad_accum_steps = arg.accumulate
    config.mesh = ConfigDict({"fsdp": arg.fsdp})
    config.init = _init(arg)
    config.checkpoint = ConfigDict({"every_steps": 1000, "keep": 3, "keep_every_steps": 50_000})
    return add_defaults(config)


def _init(arg: ConfigDict) -> ConfigDict:
    return ConfigDict({"checkpoint": arg.init, "parts": ("heads/images",) if arg.init else ()})


def _runlocal(arg: ConfigDict) -> ConfigDict:
    """20 steps of a Ti with 2 blocks on the demo's stills."""
    config = ConfigDict()
    config.model = ConfigDict({"variant": "Ti/14", "depth": 2})
    source = {
        "records": arg.records or "demo_out/stages/image",
        "batch_size": 16,
        "budget": 64,
        "augment": PUBLISHED_AUGMENT,
        "labels_drawn": 8,
        "head": "images",
    }
    config.sources = ConfigDict({"images": source})
    config.heads = ConfigDict({"images": published_head(16)})
    config.optim = published_optim(1e-3, warmup_steps=5)
    config.total_steps = 20
    config.init = _init(arg)
    config.log_steps = 5
    return add_defaults(config)
