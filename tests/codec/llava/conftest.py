"""Small data sets of made clips."""

from __future__ import annotations

import json

import pytest

from codecvit.codec.llava.cli import main

from .helpers import SMALL


@pytest.fixture(scope="session")
def clips(tmp_path_factory, write_video, scene):
    """Folder of clips: two of one stem, one of 70 frames, of 3, of 1; all 64 x 48 or 48 x 80."""
    folder = tmp_path_factory.mktemp("clips")
    for name, motion, frames, box in (
        ("a/clip.mp4", "right", 24, (slice(0, 48), slice(0, 64))),
        ("b/clip.mp4", "up", 24, (slice(0, 80), slice(0, 48))),
        ("long.mp4", "cw", 70, (slice(0, 48), slice(0, 64))),
        ("three.mp4", "left", 3, (slice(0, 48), slice(0, 64))),
        ("one.mp4", "grow", 1, (slice(0, 48), slice(0, 64))),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        pictures, _ = scene(motion, seed=len(name), frames=max(frames, 2))
        write_video(folder / name, pictures[:frames, box[0], box[1]])
    return folder


@pytest.fixture
def raw(tmp_path):
    """raw(rows): a raw.json of them in a folder of its own."""

    def write(rows, name="raw.json"):
        path = tmp_path / name
        text = json.dumps(rows) if name.endswith("json") else "\n".join(map(json.dumps, rows))
        path.write_text(text)
        return path

    return write


@pytest.fixture
def make(tmp_path, clips):
    """make(path of raw rows, *options, out=name): runs `llava data`; (exit status, out folder)."""

    def run(path, *options, out="out", small=True, workers=0):
        folder = tmp_path / out
        arguments = ["--input", path, "--out-jsonl", folder / "train.jsonl", "--root", clips]
        if "--reuse" not in options:
            arguments += ["--out-images", folder / "images"]
        arguments += [*(SMALL if small else ()), "--workers", workers, *options]
        return main(["data", *map(str, arguments)]), folder

    return run
