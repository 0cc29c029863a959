"""scripts/llava/two_encoders.py: its claims, its table, and a run far too small to learn."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "llava" / "two_encoders.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("two_encoders")


def found(script, seed, **accuracies):
    known = {name: accuracies.get(name.replace("-", "_"), 0.2) for name in script.COLUMNS}
    tasks = ("motion", "digit", "both tasks")
    spread = {n: {task: [a, a - 0.05, a + 0.05] for task in tasks} for n, a in known.items()}
    return {"seed": seed, **spread}


def test_both_are_compared_with_the_better_one_of_each_seed(script, capsys):
    results = [found(script, 0, codec=0.6, image=0.3, both=0.65)]
    results.append(found(script, 1, codec=0.3, image=0.6, both=0.6))
    assert script.claims(results) == []
    assert "both minus the better one: +2.5" in capsys.readouterr().out
    results.append(found(script, 2, codec=0.7, image=0.6, both=0.6))
    (failure,) = script.claims(results)
    assert "1.7 points below" in failure
    assert "| motion | both | 65.0 | 60.0 | 60.0 | 61.7 ± 7.2 |" in script.table(results)


@pytest.mark.slow
def test_the_whole_comparison_runs(tmp_path):
    from codecvit.convert.hf.configuration_onevision_encoder import OneVisionEncoderConfig
    from codecvit.convert.hf.modeling_onevision_encoder import OneVisionEncoderModel

    for name in ("codec", "image"):
        torch.manual_seed(len(name))
        config = OneVisionEncoderConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=1,
            image_size=112,
            patch_size=14,
        )
        OneVisionEncoderModel(config).save_pretrained(tmp_path / name)
    command = [sys.executable, SCRIPT, "--out", tmp_path / "out", "--seeds", "0", "--batch", "8"]
    command += ["--encoder", tmp_path / "codec", "--image-encoder", tmp_path / "image"]
    command += ["--open-steps", "2", "--steps", "2", "--train-clips", "16", "--test-clips", "8"]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"codec", "image", "both", "without-codec", "without-image"} <= result.keys()
