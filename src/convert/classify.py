"""`codecvit classify`: which of some labels fits an image, by an image-text model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..codec.errors import MediaError
from ..evaluators.prompts import TEMPLATES, read_templates


def main(argv: list[str]) -> int:
    """The verb `codecvit classify`."""
    parser = argparse.ArgumentParser(
        prog="codecvit classify",
        description="Zero-shot classification: the labels of each image, the best one first.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files that Pillow reads")
    parser.add_argument(
        "--model",
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="work directory or checkpoint of `codecvit train-pairs`, what `codecvit import` or "
        "`codecvit export` wrote, or OpenVision's weights",
    )
    parser.add_argument(
        "--labels", required=True, metavar="A,B,...", help="names of classes, or a file, one a line"
    )
    parser.add_argument(
        "--templates",
        default="photo",
        metavar="NAME|FILE|TEXT",
        help=f"texts about a class: {', '.join(TEMPLATES)}, a file of templates, or one with {{}} "
        "in it (default: photo)",
    )
    parser.add_argument("--top", type=int, default=5, metavar="N", help="labels shown (default: 5)")
    parser.add_argument("--tokenizer", metavar="FILE", help="where the model does not tell it")
    parser.add_argument("--ema", action="store_true", help="the moving average of the encoder")
    parser.add_argument("--json", action="store_true", help="all shares, one JSON object a line")
    options = parser.parse_args(argv)
    try:
        _run(options)
    except (ValueError, MediaError) as error:
        print(f"codecvit classify: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    # Imported here: --help needs no jax.
    from .image_text import load_clip

    if options.top < 1:
        raise ValueError(f"--top {options.top} must be at least 1")
    labels = _labels(options.labels)
    literal = "{}" in options.templates
    templates = (options.templates,) if literal else read_templates(options.templates)
    model = load_clip(options.model, tokenizer=options.tokenizer, ema=options.ema)
    shares_NY = model.classify(options.images, labels, templates)
    for image, shares_Y in zip(options.images, shares_NY, strict=True):
        order = sorted(range(len(labels)), key=lambda y: -shares_Y[y])
        if options.json:
            shares = {labels[y]: round(float(shares_Y[y]), 6) for y in order}
            print(json.dumps({"image": image, "labels": shares}))
        else:
            shown = [f"{labels[y]} {shares_Y[y]:.1%}" for y in order[: options.top]]
            print(f"{image}: {', '.join(shown)}")


def _labels(text: str) -> list[str]:
    if Path(text).is_file():
        names = Path(text).read_text(encoding="utf-8").splitlines()
    else:
        names = text.split(",")
    labels = [name.strip() for name in names if name.strip()]
    if not labels:
        raise ValueError(f"--labels {text!r} names no class")
    double = next((name for name in labels if labels.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"--labels names {double!r} twice")
    return labels
