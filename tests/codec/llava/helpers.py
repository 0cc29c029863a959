"""Rows to feed the verbs with, and what came out."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

SMALL = ["--size", "64", "--num-frames", "16", "--num-images", "3"]


def video_row(video, sample_id="s1", text="<video>\nWhat happens?"):
    return {
        "id": sample_id,
        "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "This."}],
        "video": video,
    }


def read_rows(folder, name="train.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def failures(folder):
    return read_rows(folder, "train.jsonl.failures.jsonl")


def tree(folder):
    """Content of every file below a folder."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data) if isinstance(data, bytes) else data))


def cells_of(picture, patch):
    """[cells, P, P, 3] of a mosaic in reading order."""
    rows, columns = picture.shape[0] // patch, picture.shape[1] // patch
    cells = picture.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4)
    return cells.reshape(-1, patch, patch, 3)
