"""A tiny image-text run: coloured squares and what they are called."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 50, 210), "grey": (128,) * 3}
WORDS = ("a", "the", "square", "on", "black", "picture", "is", "of", "colour", *COLOURS)


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory) -> Path:
    """train.jsonl and test.jsonl of 32 pictures each, vocab.txt, classes.txt."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    special = ["[PAD]", "[bos]", "[eos]", "[CLS]", "[UNK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS, ".", "x"]) + "\n")
    (folder / "classes.txt").write_text("\n".join(COLOURS) + "\n")
    for split in ("train", "test"):
        lines = []
        for number in range(32):
            name = list(COLOURS)[number % len(COLOURS)]
            pixels = np.clip(
                np.array(COLOURS[name]) + rng.integers(-25, 25, (28, 28, 3)), 0, 255
            ).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            (folder / f"{split}{number}.png").write_bytes(file.getvalue())
            lines.append(
                {
                    "key": f"{split}{number}",
                    "image": f"{split}{number}.png",
                    "text_0": f"a {name} square",
                    "text_1": f"the picture is {name}. the square is of colour {name}.",
                    "label": name,
                }
            )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text)
    return folder


@pytest.fixture
def pair_values(pairs_folder) -> dict:
    """A run of a few milliseconds a step; tests change what they are about."""
    size = {"width": 64, "depth": 2, "num_heads": 2, "mlp_dim": 96}
    texts = {"token_len": 12, "output_token_len": 16}
    return {
        "model": {
            "vision": {**size, "patch": 14},
            "text": {**size, "vocab_size": 32, "context_length": 12, "embed_dim": 48},
            "decoder": {**size, "kind": "queries", "vocab_size": 32, "output_length": 16},
        },
        "sources": {
            "pairs": {
                "pairs": f"table:{pairs_folder}/train.jsonl",
                "batch_size": 16,
                "image_size": 28,
            }
        },
        "tokenizer": f"{pairs_folder}/vocab.txt",
        "text": texts,
        "captioning": {"chunk": 32},
        "total_steps": 6,
        "optim": {"lr": 1e-3, "warmup_steps": 2, "clip_norm": 0.0, "weight_decay": 0.2},
        "log_steps": 1,
        "mesh": {"data": -1},
    }
