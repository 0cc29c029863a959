"""Clips where lmms-eval looks for them, and the plugin on the stand-in of lmms-eval."""

from __future__ import annotations

import importlib
import json
import shutil
import sys

import pytest

from codecvit.codec.llava.cli import main

from ..mcq_made import write_clip, write_merv
from .made import MODULE, MOSAICS, STAND_IN


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """a/clip.mp4, b/clip.mp4, b/Other.MP4"""
    folder = tmp_path_factory.mktemp("clips")
    for number, name in enumerate(("a/clip.mp4", "b/clip.mp4", "b/Other.MP4")):
        write_clip(folder / name, frames=10 + number)
    return folder


@pytest.fixture
def home(clips, tmp_path, monkeypatch):
    """HF_HOME with the clips of one task, two of them with the same name, where lmms-eval looks."""
    home = tmp_path / "home"
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    shutil.copytree(clips, home / "nextqa" / "NExTVideo")
    (home / "nextqa" / "NExTVideo" / "notes.txt").write_text("no video")
    (home / "nextqa" / "NExTVideo" / "b" / "._clip.mp4").write_text("a Mac's shadow file")
    return home


@pytest.fixture(scope="session")
def saved(make_model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_model(pool_level=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """Two clips in folders, 4 questions about them, and their assets."""
    folder = tmp_path_factory.mktemp("bench")
    write_merv(folder, questions=4, videos=2)
    rows = json.loads((folder / "test_q.json").read_text())
    for row in rows:
        del row["end_frame"]
    (folder / "test_q.json").write_text(json.dumps(rows))
    for number in range(2):
        write_clip(folder / "videos" / f"video_{10336 + number}.mp4", frames=20 + 4 * number)
    listing = folder / "list.jsonl"
    assert main(["eval", "--benchmark", str(folder), "--list-videos", str(listing)]) == 0
    arguments = ["assets", "--jsonl", listing, "--root", folder, "--out", folder / "made"]
    assert main([*map(str, arguments), "--workers", "0", *MOSAICS]) == 0
    return folder


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The module of the plugin, on the stand-in; no variable of the published code is set."""
    for name, text in STAND_IN.items():
        path = tmp_path / "stand_in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "stand_in"))
    for name in [n for n in sys.modules if n.split(".")[0] == "lmms_eval" or n == MODULE]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    yield importlib.import_module(MODULE)
    for name in [n for n in sys.modules if n.split(".")[0] == "lmms_eval" or n == MODULE]:
        del sys.modules[name]


@pytest.fixture
def make(plugin, saved, bench, tmp_path):
    """options -> the model, in float32 on the CPU."""

    def build(**options):
        options = {
            "pretrained": str(saved),
            "assets": str(bench / "made"),
            "video_root": str(bench),
            "results": str(tmp_path / "results"),
            "dtype": "float32",
            "device": "cpu",
            **options,
        }
        return plugin.CodecVitLlava(**options)

    return build
