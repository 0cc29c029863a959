"""Several probes in one report."""

import json

import numpy as np
import pytest

from codecvit.__main__ import main
from codecvit.trainers.probe.report import find_pairs, read_cells, summarise

N = 300


@pytest.fixture
def write(tmp_path):
    """A function that writes the folder of a finished run; `right` says which examples are."""

    def write_run(name, right, *, mode="codec", tokens=128, keys=N, **changes):
        folder = tmp_path / name
        folder.mkdir()
        results = {"dataset": "made", "encoder": "ours", "input": f"{mode}{tokens}", "mode": mode}
        results |= {"metric": "top1", "views": 1, "tokens": tokens}
        results |= {"test_examples": N, "test_missing": 1, "test_unreadable": 0, "seed": 0}
        results |= {"lr": 1e-3, "epoch": 2, "test": {"top1": float(right.mean()), "top5": 1.0}}
        (folder / "results.json").write_text(json.dumps(results | changes))
        names = np.array([f"clip<{number}>" for number in range(keys)])
        np.savez(folder / "test.npz", keys=names, rank=np.where(right, 0, 3).astype(np.int32))
        return folder

    return write_run


def rights(share, seed=0):
    return np.random.default_rng(seed).random(N) < share


def test_a_pair_is_compared_on_the_same_examples(write):
    """Codec is right wherever frames are, and on 30 more: chance alone cannot turn that around,
    although each interval by itself reaches into the other."""
    frames = rights(0.5)
    codec = frames.copy()
    codec[np.flatnonzero(~frames)[:15]] = True
    cells = read_cells([write("a", codec), write("b", frames, mode="frames", tokens=126)])
    found = summarise(cells)
    a, b = found["cells"]
    assert (a["input"], b["input"]) == ("codec128", "frames126")
    assert a["value"] == codec.mean() and a["low"] < b["high"]
    for cell, right in ((a, codec), (b, frames)):
        deviation = np.sqrt(right.mean() * (1 - right.mean()) / N)
        assert cell["low"] == pytest.approx(right.mean() - 1.96 * deviation, abs=0.01)
    (difference,) = found["differences"]
    assert difference["difference"] == pytest.approx(0.05)
    assert 0.02 < difference["low"] < 0.05 < difference["high"] < 0.08


def test_only_one_encoder_at_one_budget_is_a_pair(write):
    right = rights(0.5)
    runs = [
        write("codec", right),
        write("more", right, mode="frames", tokens=256),
        write("other", right, mode="frames", tokens=128, encoder="theirs"),
        write("set", right, mode="frames", tokens=128, dataset="another"),
    ]
    assert find_pairs(read_cells(runs)) == []
    views = write("views", right, mode="frames", tokens=64, views=2)
    assert len(find_pairs(read_cells([*runs, views]))) == 1


def test_seeds_are_averaged(write):
    one, two = rights(0.4, 1), rights(0.6, 2)
    cells = read_cells([write("one", one), write("two", two, seed=1)])
    (cell,) = summarise(cells)["cells"]
    assert cell["seeds"] == [0, 1] and cell["value"] == pytest.approx((one.mean() + two.mean()) / 2)
    deviation = np.std((one * 1.0 + two) / 2) / np.sqrt(N)
    assert cell["high"] - cell["low"] == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_the_page_the_file_and_the_terminal_say_the_same(write, tmp_path, capsys):
    runs = [
        write("a", rights(0.5), encoder="<b>ours"),
        write(
            "b", rights(0.3), encoder="<b>ours", mode="frames", baselines={"mean_knn_top1": 0.123}
        ),
    ]
    out = tmp_path / "report"
    assert main(["probe-report", *map(str, runs), "--out", str(out)]) == 0
    printed, page = capsys.readouterr().out, (out / "report.html").read_text()
    found = json.loads((out / "report.json").read_text())
    for cell in found["cells"]:
        text = f"{100 * cell['value']:.1f}"
        assert text in printed and f"<td>{text}</td>" in page
    assert "&lt;b&gt;ours" in page and "<b>" not in page and "<svg" in page
    assert "mean, knn" in page and "<td>12.3</td>" in page
    assert f"{100 * found['differences'][0]['difference']:+.1f}" in printed


def test_what_cannot_be_reported_is_named(write, tmp_path, capsys):
    right = rights(0.5)
    shorter = write("b", right[:10], mode="frames", keys=10)
    assert main(["probe-report", str(write("a", right)), str(shorter), "--out", "r"]) == 1
    assert "tested other examples of made" in capsys.readouterr().err
    assert main(["probe-report", str(tmp_path), "--out", "r"]) == 1
    assert "no finished run" in capsys.readouterr().err
