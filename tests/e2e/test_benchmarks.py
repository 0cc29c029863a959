"""The benchmarks run, on sizes that take seconds, from an empty folder to their tables."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compiler import xla_flags
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).parents[2]
SCORES = ("motion, k-NN", "motion, linear", "digit, k-NN", "digit, linear")
TINY = ["--clips", "40", "24", "--seeds", "1"]


def run(script, *arguments):
    command = [sys.executable, ROOT / "benchmarks" / script, *arguments]
    env = {**os.environ, "XLA_FLAGS": xla_flags()}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_cells_of_codec_vs_frames(tmp_path):
    arguments = ["--out", tmp_path, "--cells", 2, "--budgets", 128, "--steps", 6, *TINY]
    printed = run("codec_vs_frames.py", *arguments)
    cells = json.loads((tmp_path / "selection.json").read_text())
    assert [cell["row"] for cell in cells] == ["codec (default)", "uniform frames"]
    for cell in cells:
        for found in cell["scores"].values():
            assert 0 <= found["untrained"] <= 1 and 0 <= found["trained"] <= 1
    # Same clips and labels for both rows, other patches.
    records = tmp_path / "seed1" / "records"
    labels = [
        records / f"{row}-128/train/{mode}/labels/clusters.npy"
        for row, mode in (("codec", "codec"), ("frames", "frames"))
    ]
    assert labels[0].read_bytes() == labels[1].read_bytes()
    # The difference of the table is that of its own columns.
    score = "digit, linear"
    ahead = cells[0]["scores"][score]["trained"] - cells[1]["scores"][score]["trained"]
    block = printed.split(f"| {score} |")[1]
    assert f"*codec (default) minus uniform frames* | {ahead:+.1%} |" in block
    assert (tmp_path / "selection.png").stat().st_size > 10_000


@pytest.mark.parametrize("table, budgets", [("selection", [128, 192]), ("ablation", [192])])
def test_pictures_show_means_where_the_axes_say(table, budgets, tmp_path, monkeypatch):
    """Several budgets: a line per row against tokens; one budget: the rows below each other."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("codec_vs_frames")
    rows = module.TABLES[table]
    results = {
        (seed, budget, row): {name: {"trained": (place * budget + seed) / 2000} for name in SCORES}
        for seed in (1, 3)
        for budget in budgets
        for place, row in enumerate(rows)
    }
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: figures.append(figure))
    args = argparse.Namespace(out=tmp_path, table=table, budgets=budgets)
    module.plot(args, results)
    axis = figures[0].axes[-1]
    assert axis.get_title() == SCORES[-1]
    means = [line.get_xydata() for line in axis.get_lines() if line.get_marker() == "o"]
    for place, (row, found) in enumerate(zip(rows, means, strict=True)):
        accuracies = [(place * budget + 2) / 2000 for budget in budgets]
        if len(budgets) == 1:
            expected = [(accuracies[0], place)]
            assert figures[0].axes[0].get_yticklabels()[place].get_text() == row.name
        else:
            expected = [*zip(budgets, accuracies, strict=True)]
            assert axis.get_legend().get_texts()[place].get_text() == row.name
        assert found == pytest.approx(np.array(expected))


@pytest.mark.slow
def test_a_small_ladder(tmp_path):
    printed = run(
        "ladder.py", "--out", tmp_path, "--sizes", "Ti", "--depth", 1, "--steps", 6, *TINY
    )
    high, low_to_high = json.loads((tmp_path / "ladder.json").read_text())
    assert (
        low_to_high["steps"][0] > 3 * low_to_high["steps"][1]
    )  # cheap steps, for half the compute
    assert low_to_high["tflops"] == pytest.approx(high["tflops"], rel=0.1)
    score = "motion, linear"
    ahead = low_to_high["scores"][score]["trained"] - high["scores"][score]["trained"]
    assert printed.count("| Ti |") == 3
    assert f" | {ahead:+.1%} | " in printed.split("*low to high minus high*")[1]


def test_the_head_and_its_parts():
    """A tenth of the classes needs less memory than all; the step and each part have a time."""
    sizes = ["--classes", 8192, "--batch", 8, "--tokens", 16, "--repeats", 1]
    rows = [line.split(" | ") for line in run("head.py", *sizes).splitlines()[4:]]
    full, sampled = ([float(cell.rstrip(" %|")) for cell in row[3:]] for row in rows)
    assert sampled[1] < full[1]  # MiB while the loss is computed
    assert full[2] == 0 and min(full[3:] + sampled[2:]) > 0


def test_the_step_beside_pytorch_computes_the_same():
    """What a GPU run begins with: attentions against a dense one, our step against PyTorch's."""
    printed = run("train_step.py", "--tiny", "--worker", "check")
    assert "gradient norm of equal parameters" in printed


def test_storages_of_records(tmp_path):
    frames = tmp_path / "clip"
    frames.mkdir()
    (frames / "fps.txt").write_text("25")
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)):
        Image.fromarray(pixels).save(frames / f"{i:04}.png")
    rows = run("record_codec.py", tmp_path, "--budget", 256).splitlines()[4:]
    lossless = {row.split(" | ")[0].strip("| ") for row in rows if "lossless" in row}
    assert lossless == {"raw", "png"}, rows


def test_contrastive_and_caption_losses_beside_plain_ones():
    """The script itself compares values and gradients; pieces cost less memory than the whole."""
    sizes = ["--batches", 256, "--embed", 16, "--captions", 8, "--tokens", 16, "--words", 999]
    printed = run(
        "contrastive.py", *sizes, "--width", 16, "--piece", 48, "--chunk", 16, "--repeats", 1
    )
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["| softmax", "| sigmoid", "| caption"]
    assert all(float(row[4]) > 1.5 for row in rows), printed
