"""Tiny runs for the tests of training: rows of images and text, and configurations."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from codecvit.configs.llava import get_config
from codecvit.llava.training.config import parse_config

from .made import turns, write_rows

COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 190, 40),
    "blue": (30, 40, 210),
    "grey": (99, 99, 99),
}


def write_data(folder, images=12, texts=4):
    """Questions about plain coloured images, answers of unequal length, and rows of text alone."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(images):
        name, colour = list(COLOURS.items())[number % len(COLOURS)]
        pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (16, 16, 3)), 0, 255)
        path = folder / "images" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        answer = name if number % 3 else f"{name} it is"
        talk = turns("<image>\nWhich?", answer)
        rows.append({"id": f"i{number}", "image": f"images/{number}.png", "conversations": talk})
    for number in range(texts):
        talk = turns(f"Say {number}", f"{number} " * (number + 1))
        rows.append({"id": f"t{number}", "conversations": talk})
    return write_rows(folder / "rows.jsonl", rows)


def options(stage, **changes):
    """Fields of a configuration of this stage, shrunk; `a__b` is config.a.b."""
    config = get_config(f"stage={stage},runlocal")
    fields = {
        "data__image_size": 16,
        "data__max_length": 200,
        "batch_size": 4,
        "micro_batch_size": 2,
        "steps": 3,
        "checkpoint__every_steps": 100,
        "lora__rank": 4 if stage == "lora" else 0,
        "lora__alpha": 8.0,
        **changes,
    }
    if stage == "projector":
        fields.setdefault("model__template", "chatml")
    for name, value in fields.items():
        *groups, field = name.split("__")
        owner = config
        for group in groups:
            owner = owner[group]
        owner[field] = value
    return config.to_dict()


def tiny_config(stage, **changes):
    """The configuration that `options` says, checked."""
    return parse_config(options(stage, **changes))


def metrics_of(workdir):
    """Rows of metrics.jsonl, without what depends on the clock."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")} for row in rows
    ]
