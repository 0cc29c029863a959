"""Codec patches beside whole frames: equal tokens, a plan that holds, figures known beforehand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from codecvit.codec.llava.cli import main
from codecvit.codec.llava.options import MosaicOptions
from codecvit.llava.mcq import curves
from codecvit.llava.mcq.merge import read_results
from codecvit.llava.mcq.runner import Answer

from .mcq_made import write_clip, write_merv

PACKING = ["--num-frames", "16", "--size", "64"]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = write_merv(tmp_path_factory.mktemp("benchmark"), questions=6, videos=2)
    for name in ("video_10336", "video_10337"):
        write_clip(folder / "videos" / f"{name}.mp4")
    return folder


class SeesMotion:
    """Right where the visual has patches of more times than mosaics; one token per patch."""

    def generate(self, asked):
        replies = []
        for item in asked:
            number = int(item.prompt.split("number ")[1].split("?")[0])
            truth, moving = number % 3, self.times(item) > item.visual.num_groups
            replies.append(
                Answer(len(item.visual), 20, reply="ABC"[truth if moving else truth - 1])
            )
        return replies

    def times(self, item):
        return len(np.unique(item.visual.positions[:, 0]))

    def describe(self):
        return {"path": "stand-in", "fingerprint": "0"}


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(curves, "load_answerer", lambda args: (SeesMotion(), None, None))


def run(benchmark, out, *options):
    return main(
        ["curves", "--model", "made", "--benchmark", str(benchmark), "--out", str(out)]
        + [*PACKING, *options]
    )


def test_what_only_codec_patches_show_is_the_difference(stand_in, benchmark, tmp_path):
    assert run(benchmark, tmp_path, "--budgets", "3", "2") == 0
    found = json.loads((tmp_path / curves.CURVES).read_text())
    assert [row["accuracy"] for row in found["codec"]] == [1.0, 1.0]
    assert [row["accuracy"] for row in found["frames"]] == [0.0, 0.0]
    for budget, row in zip((2, 3), found["difference"], strict=True):
        assert row["budget"] == budget and row["difference"] == row["low"] == row["high"] == 1.0
        assert row["p"] == pytest.approx(2 / 2**6)
    assert (tmp_path / curves.PICTURE).stat().st_size > 5000
    # Equal patches at every budget, and all tokens on the axis.
    for name in curves.INPUTS:
        tokens = [(row["visual_tokens"], row["tokens"]) for row in found[name]]
        assert tokens == [(32, 52), (48, 68)]  # 64 pixels are 4 x 4 patches


def test_frames_are_whole_and_evenly_spaced(stand_in, benchmark, tmp_path):
    seen = []
    SeesMotion.times, kept = lambda self, item: seen.append(item.visual) or 0, SeesMotion.times
    try:
        assert run(benchmark, tmp_path, "--budgets", "2") == 0
    finally:
        SeesMotion.times = kept
    frames = seen[6:]
    assert len(frames) == 6
    for visual in frames:
        assert sorted(map(tuple, visual.positions.tolist())) == [
            (t, h, w) for t in (0, 63) for h in range(4) for w in range(4)
        ]


def test_the_plan_comes_first_and_holds(stand_in, benchmark, tmp_path, capsys, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(curves, "run_chunk", stop)
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, tmp_path, "--budgets", "1", "2")
    told = json.loads((tmp_path / curves.PLAN / "run.json").read_text())
    assert told["codec-2"]["packing"]["num_frames"] == 16
    assert told["frames-2"]["packing"]["num_frames"] == 2
    monkeypatch.undo()
    monkeypatch.setattr(curves, "load_answerer", lambda args: (SeesMotion(), None, None))
    for changed in (["--budgets", "1", "2", "3"], ["--budgets", "1", "2", "--size", "32"]):
        assert run(benchmark, tmp_path, *changed) == 2
        assert "holds a run with other options" in capsys.readouterr().err
    assert run(benchmark, tmp_path, "--budgets", "1", "2") == 0
    before = [read_results(tmp_path / name)[1] for name in ("codec-1", "frames-2")]
    assert run(benchmark, tmp_path, "--budgets", "2", "1") == 0
    assert "codec-1: 0 answered now" in capsys.readouterr().err
    assert before == [read_results(tmp_path / name)[1] for name in ("codec-1", "frames-2")]


def test_a_model_must_know_such_mosaics_in_some_number():
    options = MosaicOptions(num_frames=16, num_images=1, size=64)
    curves.check_trained(options, None)
    curves.check_trained(options, MosaicOptions(num_frames=16, num_images=8, size=64).hash)
    with pytest.raises(ValueError, match="--num-frames"):
        curves.check_trained(options, MosaicOptions(num_frames=8, num_images=8, size=64).hash)


@pytest.mark.parametrize("budget", ["0", "65"])
def test_budgets_out_of_range(benchmark, tmp_path, budget, capsys):
    assert run(benchmark, tmp_path, "--budgets", budget) == 2
    assert f"--budgets {budget}: must be 1 to 64" in capsys.readouterr().err


def test_a_difference_is_of_videos_not_of_questions():
    """Ten questions about one video are one draw: the interval doesn't shrink with them."""

    def rows(right):
        return [
            {
                "task": "t", "id": str(i), "question": "?", "options": ["a", "b"], "answer": 0,
                "video": str(i // 10), "correct": bool(right[i // 10]), "prediction": 0,
            }
            for i in range(40)
        ]  # fmt: skip

    found = curves._difference(rows([1, 1, 0, 0]), rows([0, 0, 0, 0]))
    assert found["difference"] == 0.5 and found["low"] == 0.0 and found["high"] == 1.0
