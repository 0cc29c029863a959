"""scripts/llava/demo.py from clips to table, far too small to learn anything."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "llava" / "demo.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("llava_demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def found(script, seed=0, **accuracies):
    """Results of one seed; of 400 questions, an accuracy is known to about 0.05."""
    names = (*script.SEEN, *script.CONTROLS)
    known = {name: accuracies.get(name.replace(" ", "_").replace("-", "_"), 0.13) for name in names}
    spread = {n: [a, round(a - 0.05, 4), round(a + 0.05, 4)] for n, a in known.items()}
    return {"seed": seed, **{n: {"motion": s, "digit": s} for n, s in spread.items()}}


def test_every_claim_is_checked_for_every_seed(script):
    good = found(script, video=0.7)
    assert script.claims([good]) == []
    below = found(script, 1, video=0.59)
    assert any("seed 1" in text and "0.60" in text for text in script.claims([good, below]))
    for name in ("one_frame", "zeroed", "permuted", "first_frame"):
        failures = script.claims([good, found(script, 2, video=0.7, **{name: 0.62})])
        assert len(failures) == 1 and "seed 2" in failures[0]


def test_the_interval_of_three_seeds_is_students(script):
    mean, half = script.interval([0.6, 0.7, 0.8])
    assert mean == pytest.approx(0.7) and half == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert "| motion | video | 60.0 | 70.0 | 80.0 | 70.0 ± 24.8 |" in script.table(
        [found(script, seed, video=v) for seed, v in enumerate((0.6, 0.7, 0.8))]
    )


@pytest.mark.slow
def test_the_whole_demo_runs_and_finds_its_results_again(tmp_path):
    from codecvit.convert.hf.configuration_onevision_encoder import OneVisionEncoderConfig
    from codecvit.convert.hf.modeling_onevision_encoder import OneVisionEncoderModel

    torch.manual_seed(0)
    config = OneVisionEncoderConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=112,
        patch_size=14,
    )
    OneVisionEncoderModel(config).save_pretrained(tmp_path / "encoder")
    command = [sys.executable, SCRIPT, "--out", tmp_path / "out"]
    command += ["--encoder", tmp_path / "encoder", "--seeds", "0", "--batch", "8"]
    command += ["--open-steps", "2", "--steps", "2"]
    command += ["--train-clips", "16", "--test-clips", "8", "--variants", "1"]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-2000:]  # nothing is learnt in two steps
    assert "NOT SHOWN: seed 0" in done.stdout
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"video", "one frame", "zeroed", "permuted", "first-frame"} <= result.keys()
    again = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    (second,) = json.loads((tmp_path / "out" / "results.json").read_text())
    for name in ("video", "one frame", "zeroed"):
        assert second[name]["motion"] == result[name]["motion"], again.stderr[-2000:]
