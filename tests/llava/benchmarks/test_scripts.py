"""The shell scripts of public benchmarks."""

from __future__ import annotations

import os
import subprocess

import pytest


@pytest.fixture
def script(root, tmp_path):
    """script(name, variables, *arguments) with a stand-in for codecvit that tells its arguments."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("codecvit", 'printf "%s\\t" codecvit "$@"'), ("nvidia-smi", "echo G")):
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)

    def call(name, variables, *arguments):
        return subprocess.run(
            ["bash", str(root / "scripts/llava" / name), *arguments],
            env={"PATH": f"{programs}:{os.environ['PATH']}", **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return call


def test_scripts_are_thin(script, tmp_path):
    done = script("preprocess_benchmark.sh", {}, "nextqa", "--videos", "my clips")
    assert done.stdout.split("\t")[1:-1] == [
        *("llava", "benchmark", "nextqa", "--videos", "my clips")
    ]
    done = script("preprocess_benchmark.sh", {"DRY_RUN": "1"}, "all")
    assert done.stdout.split("\t")[1:-1] == ["llava", "benchmark", "all", "--dry-run"]
    assert script("preprocess_benchmark.sh", {}).returncode == 1
    variables = {"MODEL": "my model", "TASKS": "nextqa", "ASSETS": "a:b", "DRY_RUN": "1"}
    done = script("eval.sh", variables, "--limit", "8")
    words = done.stdout.split("\t")[1:-1]
    assert words[words.index("--model") + 1] == "my model"
    assert words[words.index("--assets") + 1] == "a:b"
    assert words[words.index("--processes") + 1] == "1" and words[-3:-1] == ["--limit", "8"]
    assert "--dry-run" in words
    done = script("eval.sh", {"DRY_RUN": "1"})
    assert done.returncode == 2 and "MODEL is not set" in done.stderr
    done = script("eval.sh", {"MODEL": "m", "LMMS_VENV": str(tmp_path)})
    assert done.returncode == 2 and "setup_lmms_eval.sh" in done.stderr
    for name in ("eval.sh", "preprocess_benchmark.sh", "setup_lmms_eval.sh", "test_lmms_eval.sh"):
        done = script(name, {}, "--help")
        assert done.returncode == 0 and "bash scripts/llava/" in done.stdout, name
    done = script("test_lmms_eval.sh", {}, "--model", str(tmp_path))
    assert done.returncode == 2 and "--benchmark" in done.stderr
