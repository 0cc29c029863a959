"""Stage 2: images, images with text, and video by codec patches, frames and collages.

    codecvit pack VIDEOS --out records --mode codec,frames,collage
    codecvit train --config=src/configs/stage2_video.py:variant=L/14,init=runs/L448 \
        --workdir=runs/L_video

On this machine, in a minute, with made data (LOCAL=1 bash scripts/pretrain/train.sh makes them):

    codecvit train --config=src/configs/stage2_video.py:runlocal,init=runs/stage1 \
        --workdir=runs/stage2

Arguments: variant (L/14 or H/14), records (the folder that holds image, ocr, codec, frames and
collage), classes of images, ocr and video, init (a stage 1 run, its head included), fsdp,
accumulate, runlocal.
Video samples are codec selections to 50 %, sampled frames to 37.5 % and collages to 12.5 %: three
sources with one head and one labelling, each weighted by its share, so that their sum is the mean
over the video samples. Hyper-parameters: those of the published runs on 128 GPUs
(docs/pretraining.md has their sources and what was corrected).
Cost, an estimate (docs/chip_hours.md: analytic FLOPs at 40 % of an H200's peak): 736 GPU hours for
L, 5,150 for H. Expected result: none yet, nothing of that size has been run with this file.
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

# Samples of images, images with text and video in one step; all samples of a run; weight of images.
RECIPES = {
    "L/14": (8192, 4096, 8192, 320_000_000, 1.0),
    "H/14": (8192, 4096, 4096, 1_280_000_000, 10.0),
}
VIDEO_SHARES = {"codec": 0.5, "frames": 0.375, "collage": 0.125}


def get_config(arg: str | None = None) -> ConfigDict:
    """The configuration; see the file's docstring for `arg`."""
    arg = parse_arg(
        arg,
        variant="L/14",
        records="",
        images=2_000_000,
        ocr=365_187,
        video=400_000,
        init="",
        fsdp=1,
        accumulate=4,
        runlocal=False,
    )
    if arg.runlocal:
        return _runlocal(arg)
    if arg.variant not in RECIPES:
        raise ValueError(
            f"config argument variant={arg.variant}: there are recipes for {', '.join(RECIPES)}"
        )
    images, ocr, video, samples, image_weight = RECIPES[arg.variant]
    config = ConfigDict()
    config.model = ConfigDict({"variant": arg.variant, "dtype": "auto"})
    config.sources = _sources(arg.records or "records", images, ocr, video, 1024, 2048)
    config.sources.images.loss_weight = image_weight
    config.sources.ocr.labels = "words"
    config.sources.images.image_size = config.sources.ocr.image_size = 448
    for source in config.sources.values():
        source.loader_workers = 4
    classes = {"images": arg.images, "ocr": arg.ocr, "video": arg.video}
    config.heads = ConfigDict({name: published_head(count) for name, count in classes.items()})
    config.total_steps = samples // (images + ocr + video)
    # The published warm-up was 1 to 7 steps, the first of them at the full rate.
    config.optim = published_optim(5e-5, warmup_steps=100)
    config.grad_accum_steps = arg.accumulate
    config.mesh = ConfigDict({"fsdp": arg.fsdp})
    config.init = _init(arg)
    config.checkpoint = ConfigDict({"every_steps": 500, "keep": 3, "keep_every_steps": 5000})
    return add_defaults(config)


def _sources(
    records: str, images: int, ocr: int, video: int, image_budget: int, video_budget: int
) -> ConfigDict:
    sources = {
        "images": {
            "records": f"{records}/image",
            "batch_size": images,
            "budget": image_budget,
            "augment": PUBLISHED_AUGMENT,
            "head": "images",
        },
        "ocr": {
            "records": f"{records}/ocr",
            "batch_size": ocr,
            "budget": image_budget,
            "head": "ocr",
        },
    }
    for mode, share in VIDEO_SHARES.items():
        sources[mode] = {
            "records": f"{records}/{mode}",
            "batch_size": int(video * share),
            "budget": video_budget,
            "head": "video",
            "loss_weight": share,
        }
    for source in sources.values():
        source["labels_drawn"] = 8
    return ConfigDict(sources)


def _init(arg: ConfigDict) -> ConfigDict:
    return ConfigDict({"checkpoint": arg.init, "parts": ("heads/images",) if arg.init else ()})


def _runlocal(arg: ConfigDict) -> ConfigDict:
    """20 steps of a Ti with 2 blocks on the demo's clips and stills, which serve as text too."""
    config = ConfigDict()
    config.model = ConfigDict({"variant": "Ti/14", "depth": 2})
    records = arg.records or "demo_out/stages"
    config.sources = _sources(records, 16, 16, 32, 64, 128)
    config.sources.ocr.records = f"{records}/image"
    config.heads = ConfigDict({name: published_head(16) for name in ("images", "ocr", "video")})
    config.total_steps = 20
    config.optim = published_optim(1e-3, warmup_steps=5)
    config.grad_accum_steps = 2
    config.init = _init(arg)
    config.log_steps = 5
    return add_defaults(config)
