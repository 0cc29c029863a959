"""Pool levels: refused where they don't fit, trained, asked, and put into one table."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from codecvit.codec.llava.cli import main as llava
from codecvit.llava.mcq import pool_sweep
from codecvit.llava.mcq.merge import merge
from codecvit.llava.training.train import main as train

from .made import moving, turns, write_rows, write_video
from .mcq_made import StandIn, made_questions, run_all, write_clip, write_merv
from .runs import write_data

MOSAICS = "--size 32 --patch 4 --num-frames 8 --num-images 2 --lossless"  # 8 x 8 patches a frame


@pytest.fixture(scope="module")
def places(encoder_dir, lm_dir, tmp_path_factory):
    """Captions of images, questions about videos, a benchmark."""
    folder = tmp_path_factory.mktemp("sweep")
    rows = []
    for number in range(4):
        write_video(folder / f"{number}.mp4", moving(number))
        talk = turns("<video>\nWhat moves?", "A square.")
        rows.append({"id": str(number), "video": f"{number}.mp4", "conversations": talk})
    benchmark = write_merv(folder / "benchmark", questions=3)
    write_clip(benchmark / "videos" / "video_10336.mp4")
    return {
        "ENCODER": str(encoder_dir),
        "LM": str(lm_dir),
        "CAPTIONS": str(write_data(folder / "captions")),
        "DATA": str(write_rows(folder / "videos.jsonl", rows)),
        "BENCHMARK": str(benchmark),
    }


def arguments(places, level, max_length=200):
    parts = f"encoder={places['ENCODER']},lm={places['LM']},data={places['DATA']}"
    return [
        f"--config=src/configs/llava.py:stage=sft,runlocal,{parts}",
        f"--config.model.pool_level={level}",
        f"--config.data.mosaics={MOSAICS}",
        f"--config.data.max_length={max_length}",
    ]


def test_a_level_that_overflows_is_refused_before_training(places, tmp_path, capsys):
    """8 steps of 8 x 8 cells are 512 tokens, of 4 x 4 they are 128; 200 fit."""
    work = tmp_path / "run"
    assert train([*arguments(places, 1), f"--workdir={work}"]) == 1
    said = capsys.readouterr().err
    assert "100% of the rows overflow: they have up to 512 visual tokens" in said
    assert "room for 200" in said and "pool_level" in said
    assert not work.exists()
    assert train([*arguments(places, 2), "--dry-run", f"--workdir={work}"]) == 0
    assert "4 rows; visual tokens of a row: 128 on average, 128 at most" in capsys.readouterr().out
    assert not work.exists()


def test_the_language_models_context_is_a_limit_as_well(places, tmp_path, capsys):
    """The tiny one reads 512 tokens, whatever max_length says."""
    assert train([*arguments(places, 1, max_length=9999), f"--workdir={tmp_path}/run"]) == 1
    assert "room for 512" in capsys.readouterr().err


def results(folder, rule, count=9):
    questions = made_questions(count)
    run_all(questions, StandIn(questions, rule), folder)
    merge(folder)
    return folder


def test_levels_side_by_side(tmp_path, capsys):
    right, wrong = results(tmp_path / "right", "truth"), results(tmp_path / "wrong", "wrong")
    given = [f"4={wrong}", f"1={right}", "--out", str(tmp_path)]
    assert llava(["pool-sweep", *given]) == 0
    found = json.loads((tmp_path / pool_sweep.FIGURES).read_text())
    assert [(p["level"], p["accuracy"]) for p in found["levels"]] == [(1, 1.0), (4, 0.0)]
    assert found["levels"][1]["p"] == pytest.approx(2 / 2**9)
    assert all(point["visual_tokens"] == 1024 for point in found["levels"])
    assert (tmp_path / pool_sweep.PICTURE).stat().st_size > 5000
    assert "9 questions; chance 0.250" in capsys.readouterr().out


def test_results_that_cannot_be_compared(tmp_path, capsys):
    nine, six = results(tmp_path / "nine", "truth"), results(tmp_path / "six", "truth", 6)
    for given, told in (
        ([f"1={nine}", f"2={six}"], "not over the same questions"),
        ([f"1={tmp_path}"], "run.json"),
        ([str(nine)], "must be LEVEL=DIR"),
        ([f"0={nine}"], "must be LEVEL=DIR"),
    ):
        assert llava(["pool-sweep", *given, "--out", str(tmp_path)]) == 2
        assert told in capsys.readouterr().err


def sweep(root, places, **variables):
    """The real script; `codecvit` is this package under this Python."""
    given = {"GPUS": "0", "MAX_LENGTH": "200", "CAPTION_BATCH": "4", "TUNING_BATCH": "4"}
    return subprocess.run(
        ["bash", str(root / "scripts/llava/pool_sweep.sh")],
        env={**os.environ, **places, **given, "MICRO": "2", **variables},
        capture_output=True,
        text=True,
    )


def test_a_dry_run_prints_every_command(root, places):
    done = sweep(root, places, DRY_RUN="1", LEVELS="2 8", TUNING="lora", ASSETS="a b", OUT="o p")
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(x[1:]) for x in done.stdout.splitlines() if x.startswith("$")]
    assert ["--dry-run" in line for line in lines] == [True, True] + [False] * 7
    assert [line[line.index("bash") + 1] for line in lines if "bash" in line] == [
        "scripts/llava/pretrain_projector.sh",
        "scripts/llava/sft_lora.sh",
    ] * 2
    asked = [line for line in lines if line[:3] == ["codecvit", "llava", "eval"]]
    assert [line[line.index("--model") + 1] for line in asked] == [
        "o p/level-2/tuned/model",
        "o p/level-8/tuned/model",
    ]
    assert all(line[line.index("--assets") + 1] == "a b" for line in asked)
    assert lines[-1][3:] == ["2=o p/level-2/results", "8=o p/level-8/results", "--out", "o p"]


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"LEVELS": "1 x"}, "'x' must be a positive whole number"),
        ({"LEVELS": "0"}, "'0' must be a positive"),
        ({"TUNING": "full"}, "TUNING=full must be sft or lora"),
        ({"ENCODER": ""}, "ENCODER is not set"),
        ({"BENCHMARK": "/nowhere"}, "BENCHMARK=/nowhere is no folder"),
    ],
)
def test_bad_variables(root, places, variables, told):
    done = sweep(root, places, DRY_RUN="1", **variables)
    assert done.returncode == 2 and told in done.stderr


@pytest.mark.slow
def test_the_whole_sweep_demo_sized(root, places, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "codecvit").write_text(f'#!/bin/sh\nexec {sys.executable} -m codecvit "$@"\n')
    (programs / "codecvit").chmod(0o755)
    flags = f"--config.data.mosaics='{MOSAICS}' --config.data.workers=0"
    variables = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "OUT": str(tmp_path / "out"),
        "TUNING_FLAGS": flags,
        "CAPTION_FLAGS": "--config.data.workers=0",
        "CAPTION_STEPS": "2",
        "TUNING_STEPS": "2",
        "EVAL_FLAGS": f"{MOSAICS} --dtype float32 --max-new-tokens 2",
    }
    refused = sweep(root, places, **variables, LEVELS="2 1")
    assert refused.returncode == 2 and "level 1 was refused" in refused.stderr
    assert not Path(variables["OUT"]).exists()
    done = sweep(root, places, **variables, LEVELS="2 4")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out" / pool_sweep.FIGURES).read_text())
    # Two seconds of the clip are 24 frames, of which 8 are sampled: 8 steps of 4 x 4 and 2 x 2.
    assert [point["visual_tokens"] for point in found["levels"]] == [128, 32]
    assert (tmp_path / "out" / pool_sweep.PICTURE).exists()
