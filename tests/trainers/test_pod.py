"""tpu_command.sh runs a real training in two processes, through a preemption, to the same end."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from compiler import xla_flags
from launch.cloud import Cloud, until

from codecvit.metrics import read_metrics
from codecvit.trainers.checkpoint_reading import find_checkpoint, restore_params

STEPS = 30
CREATE = ["--accelerator-type=v4-16", "--runtime-version=tpu-ubuntu2204-base", "--spot"]
# Each worker runs the code that it got; what it imports is told.
SCRIPT = """set -e
python -c 'import codecvit; print("code:", codecvit.__file__)'
echo "$ train"
exec python -m codecvit train "--config=tiny_config.py:records=$1,steps=$2,save=1000" "--workdir=$3"
"""


@pytest.fixture
def pod(tmp_path):
    folder = tmp_path / "cloud"
    folder.mkdir()
    cloud = Cloud(folder, workers=2)
    cloud.write(
        env={
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags(2),
        }
    )
    yield cloud
    cloud.end()


@pytest.fixture
def tree(root, tmp_path):
    """The package and a configuration, in a git tree."""
    folder = tmp_path / "project"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "src", folder / "codecvit", ignore=ignored)
    shutil.copy(root / "tests/trainers/tiny_config.py", folder)
    (folder / "train.sh").write_text(SCRIPT)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def start(pod, tree, records, workdir) -> subprocess.Popen:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--resume-forever", "--yes", f"--dir={tree}", "--no-prepare", *CREATE]
    flags += ["--poll=1", f"--port={port}", "--give-up-after=1"]
    command = ["--", "bash", "train.sh", str(records), str(STEPS), str(workdir)]
    return pod.start("train", *flags, *command)


def losses(workdir):
    return {row["step"]: row["train/loss"] for row in read_metrics(workdir)}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_preempted_pod_ends_with_the_same_parameters(pod, tree, records, tmp_path):
    plain, preempted = tmp_path / "plain", tmp_path / "preempted"
    process = start(pod, tree, records, plain)
    out = process.communicate(timeout=900)[0]
    assert process.returncode == 0, out
    assert f"code: {pod.home(0)}/codecvit/codecvit/__init__.py" in out

    process = start(pod, tree, records, preempted)
    metrics = preempted / "metrics.jsonl"
    until(lambda: metrics.exists() and '"step": 5,' in metrics.read_text(), 600)
    pod.preempt(worker=1)
    out = process.communicate(timeout=900)[0]
    assert process.returncode == 0, out
    assert "job on pod: preempted: TPU pod is PREEMPTED" in out
    assert "TPU pod is PREEMPTED: it is deleted and asked for again" in out
    verbs = [call[3] for call in pod.calls() if call[3] in ("create", "delete")]
    assert verbs == ["create", "delete", "create"]

    assert find_checkpoint(preempted).name == find_checkpoint(plain).name == str(STEPS)
    ends = [restore_params(workdir)[0] for workdir in (plain, preempted)]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert losses(plain) == losses(preempted)
    # The second pod did not begin anew: its log starts behind the step that SIGTERM saved.
    first_log = next((pod.home(0) / ".codecvit/jobs").glob("train-*/log")).read_text()
    assert "step 1: " not in first_log and f"step {STEPS}: " in first_log
