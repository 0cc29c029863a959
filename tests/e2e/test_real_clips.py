"""The main job on real clips, verb by verb, in real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import codecvit

CLIPS = (
    "people_h264_640x360.mp4",
    "av1_640x360.mkv",
    "hevc_128x128.mp4",
    "action_mpeg4_320x240.avi",
    "rotated_90_568x320.mov",
    "corrupted.mp4",
)
VIEW = {"size": 112, "budget": 128, "num_frames": 8}


ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    command = [sys.executable, "-m", "codecvit", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_files_become_a_trained_exported_encoder(media, tmp_path):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in VIEW.items()]
    run("pack", *(media / clip for clip in CLIPS), "--out", tmp_path / "records", *options)
    records = tmp_path / "records" / "codec"
    manifest = json.loads((records / "manifest.json").read_text())
    assert manifest["records"] >= 5
    assert manifest["records"] + manifest["failures"] == len(CLIPS)
    run("cluster", records, "--name", "clusters", "--k", 2, "--n", 1)
    settings = f"records={records},classes=2,budget=128,batch_size=8,steps=2,variant=Ti/14"
    overrides = ["--config.model.depth=1", "--config.sources.video.loader_workers=0"]
    overrides += ["--config.sources.video.labels_drawn=1"]
    config = f"--config=src/configs/pretrain_video.py:{settings}"
    run("train", config, f"--workdir={tmp_path / 'run'}", *overrides)
    run("export", tmp_path / "run", "--out", tmp_path / "exported_real", "--image-size", 112)

    sequence = codecvit.pack_video(media / CLIPS[0], **VIEW)
    trained, exported = (codecvit.load(tmp_path / d)(sequence) for d in ("run", "exported_real"))
    assert trained.tokens.shape == (128, 192)
    np.testing.assert_array_equal(trained.pooled, exported.pooled)
