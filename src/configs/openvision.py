"""Image-text training by the OpenVision recipes, from low to high resolution.

    codecvit train-pairs --workdir=runs/B16/pre \\
        --config=src/configs/openvision.py:img=B/16,stage=pre,pairs=records:PAIRS,vocab=vocab.txt
    codecvit train-pairs --workdir=runs/B16/ft224 --config=src/configs/openvision.py:\\
        img=B/16,stage=ft224,pairs=records:PAIRS,vocab=vocab.txt,init=runs/B16/pre

scripts/contrastive/train.sh runs all stages one after the other; with LOCAL=1 it does so on this
machine, in minutes, shrunk by the argument `runlocal`, on pairs that it makes.

Arguments:
  img: image tower, SIZE/PATCH: a row of MODELS, such as B/16.
  txt, decoder: sizes of text tower and decoder; "" takes that of img.
  tower: openvision, or codecvit: our own encoder, Ti to H, which also reads videos.
  loss: softmax or sigmoid.
  version: 1 contrasts and captions (arXiv 2505.04601), 2 captions only (arXiv 2509.01644).
  stage: pre, ft224 or ft384 (STAGES); res, samples, batch_factor, base_lr and warmup_samples
    replace its values where they are not 0 (warmup_samples: not negative).
  pairs: KIND:PATH (docs/data.md); vocab: tokenizer file; init: a run to start from, towers and
    decoder included.
  token_len, output_token_len: tokens of the contrasted texts and of the caption to be written.
  mask_ratio: share of patches that the image tower does not see; keep_ratio: share of its tokens
    that the decoder reads, 0 takes 1 (version 1) or 0.35 (version 2).
  imagenet: KIND:PATH of labelled images for zero-shot accuracy, with classes, the file of class
    names, and templates; coco, flickr: KIND:PATH of test pairs for retrieval.
  fsdp, tensor: sizes of these mesh axes.

The number of samples decides, not that of steps: steps = samples / batch. Hyper-parameters are
the published ones (their scripts state them in "ImageNet epochs" of 1,281,167): batch 16,384 *
batch_factor, peak rate base_lr * 64 * batch_factor, cosine to 0, Adam 0.9/0.95 with the first
moment in bfloat16, decay 0.2 of kernels alone, no clipping. A resolution that the patch does not
divide is an error here; theirs cuts the rest away (S/16 at 84, so400m/14 at 384).
Cost, an estimate (docs/chip_hours.md has every row: analytic FLOPs at 40 % of an H200's peak), in
GPU hours of pre, ft224 and ft384: 1,610, 185 and 108 for B/16; 2,680, 608 and 308 for L/14; 8,210,
1,600 and 765 for H/14.
Expected result: none yet; docs/model_zoo.md has the published figures, marked as theirs.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from codecvit.configs.common import add_pair_defaults
from codecvit.configs.fields import parse_arg

IMAGENET = 1_281_167
"""Images of an "ImageNet epoch", the unit of the published scripts."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A published row.

    Attributes:
      txt, decoder: sizes of the text tower, which sets the width of the common space, and of the
        caption decoder.
      res: resolutions of the stages pre, ft224 and ft384; 0 where there is none.
      imagenet: published ImageNet-1k zero-shot top-1 in %, by resolution (theirs, not ours).
    """

    txt: str
    decoder: str
    res: tuple[int, int, int]
    imagenet: dict[int, float]


MODELS = {
    "Ti/16": Model("Ti", "Ti", (160, 224, 384), {160: 46.9, 224: 49.6, 384: 51.5}),
    "Ti/8": Model("Ti", "Ti", (160, 224, 384), {160: 51.9, 224: 53.5, 384: 53.9}),
    "S/16": Model("S", "S", (160, 224, 384), {160: 63.5, 224: 65.9, 384: 67.1}),
    "S/8": Model("S", "S", (160, 224, 384), {160: 67.3, 224: 68.6, 384: 68.5}),
    "B/16": Model("B", "B", (160, 224, 384), {160: 72.4, 224: 73.9, 384: 74.5}),
    "B/8": Model("B", "B", (160, 224, 384), {160: 74.8, 224: 75.4, 384: 75.6}),
    "L/14": Model("L", "L", (84, 224, 336), {84: 74.7, 224: 78.5, 336: 78.9}),
    "L/8": Model("L", "L", (160, 224, 384), {}),
    # 378: what a patch of 14 leaves of their 384.
    "So400m/14": Model("So400m", "So400m", (84, 224, 378), {84: 76.2, 224: 79.7, 378: 79.9}),
    "H/14": Model("H", "H", (84, 224, 336), {84: 77.4, 224: 80.4}),
}
"""The published models by image tower (openvision README; section "zoo" of docs/model_zoo.md)."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """The published settings of one stage.

    Attributes:
      samples, warmup_samples: pairs seen, and those of the warm-up among them.
      batch_factor: batch in units of 16,384.
      base_lr: peak rate in units of 64 * batch_factor.
    """

    samples: int
    warmup_samples: int
    batch_factor: float
    base_lr: float


STAGES = {
    "pre": Stage(10_000 * IMAGENET, 40 * IMAGENET, 2.0, 8e-6),
    "ft224": Stage(800 * IMAGENET, 20 * IMAGENET, 1.0, 4e-7),
    "ft384": Stage(200 * IMAGENET, 0, 0.5, 1e-7),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The configuration; see the file's docstring for `arg`."""
    arg = parse_arg(
        arg,
        img="B/16",
        txt="",
        decoder="",
        tower="openvision",
        loss="softmax",
        version=1,
        stage="pre",
        res=0,
        samples=0,
        warmup_samples=-1,
        batch_factor=0.0,
        base_lr=0.0,
        pairs="",
        vocab="",
        init="",
        token_len=80,
        output_token_len=128,
        mask_ratio=0.0,
        keep_ratio=0.0,
        fsdp=1,
        tensor=1,
        imagenet="",
        classes="classes.txt",
        templates="imagenet",
        coco="",
        flickr="",
        runlocal=False,
    )
    for name, known in (("img", MODELS), ("stage", STAGES), ("version", (1, 2))):
        if arg[name] not in known:
            raise ValueError(
                f"config argument {name}={arg[name]} must be one of {', '.join(map(str, known))}"
            )
    model, stage = MODELS[arg.img], STAGES[arg.stage]
    res = arg.res or model.res[list(STAGES).index(arg.stage)]
    factor = arg.batch_factor or stage.batch_factor
    batch_size = int(16_384 * factor)
    warmup = stage.warmup_samples if arg.warmup_samples < 0 else arg.warmup_samples
    config = ConfigDict()
    config.model = towers(arg, model)
    source = {
        "pairs": arg.pairs or "records:records/pairs",
        "batch_size": batch_size,
        "image_size": res,
        # simclr's jitter and grey at strength 0.4, and crops of at least 40 % of the image
        "augment": {"crop_area": (0.4, 1.0), "crop_aspect": (0.75, 4 / 3), **COLOURS},
        "mask_ratio": arg.mask_ratio,
        "loader_workers": 16,
    }
    config.sources = ConfigDict({"pairs": source})
    config.tokenizer = arg.vocab or "vocab.txt"
    config.text = ConfigDict({"token_len": arg.token_len, "output_token_len": arg.output_token_len})
    config.contrastive = ConfigDict({"chunks": 8})
    config.captioning = ConfigDict({"keep_ratio": keep_ratio(arg)})
    config.optim = optim(arg.base_lr or stage.base_lr, factor)
    config.optim.warmup_steps = warmup // batch_size
    config.total_steps = (arg.samples or stage.samples) // batch_size
    config.log_steps = 50
    config.checkpoint = ConfigDict({"every_steps": 1000, "keep": 3})
    config.mesh = ConfigDict({"fsdp": arg.fsdp, "tensor": arg.tensor})
    config.init = ConfigDict({"checkpoint": arg.init, "parts": parts(arg) if arg.init else ()})
    tests = {name: {"pairs": arg[name]} for name in ("coco", "flickr") if arg[name]}
    config.retrieval = ConfigDict(tests)
    config.zero_shot = ConfigDict({})
    if arg.imagenet:
        names = {"classes": arg.classes, "dataset": "imagenet", "templates": arg.templates}
        names["canonical"] = True
        config.zero_shot.imagenet = ConfigDict({"pairs": arg.imagenet, **names})
    return runlocal(config, arg) if arg.runlocal else add_pair_defaults(config)


COLOURS = {
    "jitter": 0.8,
    "brightness": 0.32,
    "contrast": 0.32,
    "saturation": 0.32,
    "hue": 0.08,
    "grey": 0.2,
}
"""Probability and strengths of SimCLR's jitter at strength 0.4 (arXiv 2002.05709, appendix A), and
the probability of grey."""


def towers(arg: ConfigDict, model: Model) -> ConfigDict:
    """The `model` section."""
    made = ConfigDict({"tower": arg.tower, "loss": arg.loss})
    made.vision = ConfigDict({"variant": arg.img, "dtype": "auto"})
    made.text = made.decoder = None
    size = {"vocab_size": 32_000, "dtype": "auto"}
    if arg.version == 1:
        text = {"variant": arg.txt or model.txt, "context_length": arg.token_len, **size}
        made.text = ConfigDict(text)
    kind = "queries" if arg.version == 1 else "causal"
    length = {"kind": kind, "output_length": arg.output_token_len}
    made.decoder = ConfigDict({"variant": arg.decoder or model.decoder, **length, **size})
    return made


def keep_ratio(arg: ConfigDict) -> float:
    """The argument, or what the version publishes."""
    return arg.keep_ratio or {1: 1.0, 2: 0.35}[arg.version]


def parts(arg: ConfigDict) -> tuple[str, ...]:
    """What a stage takes over of the stage before, beside the image tower."""
    return ("image_head", "text", "logit_scale", "decoder") if arg.version == 1 else ("decoder",)


def optim(base_lr: float, factor: float) -> ConfigDict:
    """The published optimiser."""
    return ConfigDict(
        {
            "lr": base_lr * 64 * factor,
            "schedule": "cosine",
            "b1": 0.9,
            "b2": 0.95,
            "weight_decay": 0.2,
            "clip_norm": 0.0,
            "first_moment_dtype": "bfloat16",
        }
    )


RUNLOCAL = {"pre": (84, 500, 1e-3), "ft224": (112, 120, 2e-4), "ft384": (140, 40, 1e-4)}
"""Resolution, steps and peak rate of the shrunk stages."""


def runlocal(config: ConfigDict, arg: ConfigDict) -> ConfigDict:
    """The same stage, tiny, for the pairs of `codecvit demo-data --pairs`.

    2 blocks of width 128, short texts, batches of 64; all three stages take minutes on 2 CPU cores.
    """
    resolution, steps, lr = RUNLOCAL[arg.stage]
    size = {"width": 128, "depth": 2, "num_heads": 2, "mlp_dim": 512}
    config.text.update({"token_len": 16, "output_token_len": 40})
    config.model.vision = ConfigDict({**size, "patch": 14})
    if config.model.text is not None:
        table = {"vocab_size": 128, "context_length": 16, "embed_dim": 128}
        config.model.text = ConfigDict({**size, **table})
    kind = {"kind": config.model.decoder.kind, "vocab_size": 128, "output_length": 40}
    config.model.decoder = ConfigDict({**size, **kind})
    source = config.sources.pairs
    source.update({"batch_size": 64, "image_size": resolution, "loader_workers": 0})
    # Mirrored or cropped, a 6 may be a 9 or gone.
    source.augment = ConfigDict({"grey": 0.1})
    config.contrastive.chunks = 1
    for test in config.zero_shot.values():
        test.dataset = ""  # ten digits
    # Muon: with AdamW the losses of the first 400 steps fall half as far (docs/results.md).
    config.optim.update({"name": "muon", "muon_lr": 20 * lr, "lr": lr})
    config.optim.update({"warmup_steps": steps // 10, "first_moment_dtype": "float32"})
    config.total_steps = steps
    config.log_steps = 20
    return add_pair_defaults(config)
