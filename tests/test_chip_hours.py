"""docs/chip_hours.md and the costs in the configs' docstrings are what the script computes."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from codecvit.trainers.flops import PEAK_TFLOPS

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("chip_hours", ROOT / "scripts" / "chip_hours.py")
chip_hours = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(chip_hours)

CITED = {**chip_hours.RUNS, "openvision": []}
CITED["openvision"] = [
    f"img={name},stage={stage}"
    for name in ("B/16", "L/14", "H/14")
    for stage in ("pre", "ft224", "ft384")
]
"""Rows whose hours stand in the docstring of their config, in this order."""


def test_the_page_is_what_the_script_writes(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["chip_hours.py", "--check"])
    assert chip_hours.main() == 0, "run python scripts/chip_hours.py"
    (tmp_path / "other.md").write_text(chip_hours.PAGE.read_text() + "more")
    monkeypatch.setattr(chip_hours, "PAGE", tmp_path / "other.md")
    assert chip_hours.main() == 1


@pytest.mark.parametrize("name", sorted(CITED))
def test_a_config_states_its_cost(name):
    docstring = importlib.import_module(f"codecvit.configs.{name}").__doc__
    cost = re.search(r"Cost, an estimate.*?Expected\sresult", docstring, flags=re.S)[0]
    hours = [
        chip_hours.rounded(chip_hours.chip_hours(chip_hours.work(name, row)["flops"], "H200"))
        for row in CITED[name]
    ]
    assert re.search(".*?".join(rf"(?<![\d,.]){re.escape(h)}\b" for h in hours), cost, flags=re.S)
    assert f"{chip_hours.UTILISATION * 100:.0f} % of an H200's peak" in cost


def test_every_pretraining_config_has_a_row():
    trains = {
        path.stem
        for path in (ROOT / "src" / "configs").glob("*.py")
        if "config.total_steps" in path.read_text() and "config.sources" in path.read_text()
    }
    assert trains - {"demo"} == set(chip_hours.RUNS)  # the demo takes minutes


def test_hours_by_hand():
    """Stage 1 of L/14: 13 billion images of 256 tokens, whole batches only."""
    found = chip_hours.work("stage1_images", "variant=L/14,size=224")
    assert found["samples"] == 13_000_000_000 // 24_576 * 24_576
    token = 3 * 24 * (24 * 1024**2 + 4 * 256 * 1024)
    head = 6 * 1024 * 0.1 * 2_000_000
    assert found["flops"] == pytest.approx(found["samples"] * (256 * token + head))
    hours = found["flops"] / (989.5e12 * 0.4) / 3600
    assert chip_hours.chip_hours(found["flops"], "H200") == pytest.approx(hours)


def test_phases_count_each_step_with_its_own_bucket():
    made = importlib.import_module("codecvit.configs.stage1_images").get_config("").to_dict()
    made["total_steps"] = 100
    phase = {"from_step": 61, "image_size": 448, "budget": 1024, "batch_size": 8192}
    made["sources"]["images"]["phases"] = {"high": phase}
    config = chip_hours.PretrainConfig.from_dict(made)
    segments = chip_hours._segments(config)
    assert [(steps, step["samples"]) for steps, step in segments] == [(60, 24_576), (40, 8192)]
    assert segments[1][1]["tokens"] == 8192 * 1024


def test_peaks_agree_with_those_of_the_mfu():
    """Keys there are parts of jax's names of devices; v5e is called "v5 lite"."""
    for name, chip in chip_hours.CHIPS.items():
        assert PEAK_TFLOPS[name.replace("v5e", "v5 lite").replace("v6e", "v6")] == chip.tflops
