"""scripts/llava/eval_chunks.sh: every chunk once, on its GPU, here or as a Slurm array."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest

SCRIPT = "scripts/llava/eval_chunks.sh"
NEEDED = {"MODEL": "my model", "BENCHMARK": "bench", "OUT": "out"}


@pytest.fixture
def run(root, tmp_path):
    """run(variables, *arguments): the script with stand-ins for the programs it calls, each of
    which appends its arguments to `calls`; gives (process, calls as lists)."""
    programs = tmp_path / "bin"
    programs.mkdir()
    log = tmp_path / "calls"
    for name, extra in (
        ("codecvit", 'case " $* " in *" --chunk $FAILING "*) exit 1;; esac'),
        ("sbatch", 'echo "77;cluster"'),
        ("nvidia-smi", 'for i in $(seq "${HAVE_GPUS:-0}"); do echo "GPU $i"; done'),
    ):
        path = programs / name
        # One write a line: several of them run at a time.
        record = f'line=$(printf "%s" "$CUDA_VISIBLE_DEVICES"; printf "\\t%s" {name} "$@")'
        record = "" if name == "nvidia-smi" else f'{record}; echo "$line" >> "{log}"'
        path.write_text(f"#!/usr/bin/env bash\n{record}\n{extra}\n")
        path.chmod(0o755)

    def call(variables, *arguments):
        variables = {"FAILING": "none", **NEEDED, **variables}
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", **variables}
        done = subprocess.run(
            ["bash", str(root / SCRIPT), *arguments],
            env={k: v for k, v in environment.items() if v is not None},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        calls = log.read_text().splitlines() if log.exists() else []
        return done, [line.split("\t") for line in calls]

    return call


def chunks(calls):
    return sorted(call[call.index("--chunk") + 1] for call in calls if "--chunk" in call)


def test_every_chunk_once_then_the_merge(run):
    done, calls = run({"CHUNKS": "5", "GPUS": "2", "ASSETS": "a b"}, "--batch-size", "4")
    assert done.returncode == 0, done.stderr
    assert chunks(calls) == [f"{k}/5" for k in range(5)]
    assert calls[-1][1:] == ["codecvit", "llava", "eval", "--merge", "--out", "out"]
    for call in calls[:-1]:
        assert call[call.index("--model") + 1] == "my model"
        assert call[call.index("--assets") + 1] == "a b"
        assert call[call.index("--batch-size") + 1] == "4"


def test_each_gpu_has_one_process(run):
    done, calls = run({"CHUNKS": "7", "HAVE_GPUS": "3"})
    assert done.returncode == 0
    place = {call[call.index("--chunk") + 1]: call[0] for call in calls[:-1]}
    assert place == {f"{k}/7": str(k % 3) for k in range(7)}
    _, calls = run({"HAVE_GPUS": "2"})
    assert chunks(calls[8:]) == ["0/2", "1/2"]  # as many chunks as GPUs


def test_a_failing_chunk_stops_neither_the_others_nor_goes_unsaid(run):
    done, calls = run({"CHUNKS": "4", "FAILING": "1/4"})
    assert done.returncode == 1 and "chunk 1/4 failed" in done.stderr
    assert len(chunks(calls)) == 4 and not any("--merge" in call for call in calls)


def test_slurm_gets_an_array_and_a_merge_behind_it(run):
    done, calls = run({"CHUNKS": "32", "SLURM": "1", "SBATCH_ARGS": "--gres=gpu:1 --time=1:00"})
    assert done.returncode == 0, done.stderr
    array, merge = calls
    assert "--array=0-31" in array and "--gres=gpu:1" in array and "--time=1:00" in array
    line = array[array.index("--wrap") + 1]
    words = shlex.split(line)
    assert words[words.index("--model") + 1] == "my model"
    assert line.endswith("--chunk $SLURM_ARRAY_TASK_ID/32")
    assert "--dependency=afterany:77" in merge
    assert merge[merge.index("--wrap") + 1].strip() == "codecvit llava eval --merge --out out"


@pytest.mark.parametrize("slurm", ["0", "1"])
def test_a_dry_run_prints_and_does_nothing(run, tmp_path, slurm):
    done, calls = run({"CHUNKS": "3", "SLURM": slurm, "DRY_RUN": "1"})
    assert done.returncode == 0 and calls == [] and not (tmp_path / "out").exists()
    assert "--merge" in done.stderr and ("0/3" in done.stderr or "--array=0-2" in done.stderr)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MODEL": None}, "MODEL is not set"),
        ({"CHUNKS": "0"}, "CHUNKS=0 must be a number from 1"),
        ({"GPUS": "two"}, "GPUS=two"),
        ({"SLURM": "yes"}, "SLURM=yes"),
        ({"VERB": "judge"}, "VERB=judge must be eval or answer"),
        ({"VERB": "answer", "STRATEGY": "letter"}, "STRATEGY=letter is for VERB=eval"),
    ],
)
def test_wrong_use_is_told(run, variables, message):
    done, calls = run(variables)
    assert done.returncode == 2 and message in done.stderr and calls == []


def test_open_questions_go_the_same_way(run):
    done, calls = run({"CHUNKS": "2", "VERB": "answer"})
    assert done.returncode == 0, done.stderr
    assert {call[3] for call in calls} == {"answer"} and chunks(calls) == ["0/2", "1/2"]
    assert not any("--strategy" in call for call in calls)
    _, calls = run({"CHUNKS": "1", "STRATEGY": "loglik"})
    assert calls[-2][calls[-2].index("--strategy") + 1] == "loglik"


def test_help_tells_the_variables(run):
    done, _ = run({}, "--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("MODEL", "ASSETS", "CHUNKS", "DRY_RUN", "GPUS"))
