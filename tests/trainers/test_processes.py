"""Runs of two real processes: resume, signals, a lost process, other process counts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from train_processes import CONFIG, finish, run, start, wait_for_step

from codecvit.__main__ import main
from codecvit.metrics import read_metrics
from codecvit.trainers.checkpoint_reading import find_checkpoint, restore_params

STEPS = 80


@pytest.fixture(scope="module")
def uninterrupted(records, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    run(records, workdir, steps=STEPS, save=10)
    return workdir


def losses(workdir):
    return {row["step"]: row["train/loss"] for row in read_metrics(workdir)}


def assert_same_run(one, other):
    a, b = restore_params(one)[0], restore_params(other)[0]
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert losses(one) == losses(other)


def test_two_processes_write_one_run(uninterrupted):
    assert list(losses(uninterrupted)) == list(range(1, STEPS + 1))
    assert len(list((uninterrupted / "tensorboard").iterdir())) == 1
    assert find_checkpoint(uninterrupted).name == str(STEPS)


@pytest.mark.slow
def test_two_killed_processes_continue_bit_equal(records, tmp_path, uninterrupted):
    processes = start(records, tmp_path, steps=STEPS, save=10)
    wait_for_step(processes, tmp_path, int(np.random.default_rng().integers(11, 60)))
    for process in processes:
        process.kill()
    finish(processes)
    assert 0 < int(find_checkpoint(tmp_path).name) < STEPS
    run(records, tmp_path, steps=STEPS, save=10)
    assert_same_run(uninterrupted, tmp_path)


@pytest.mark.slow
def test_sigterm_to_one_process_saves_on_both_and_one_process_goes_on(
    records, tmp_path, uninterrupted
):
    """And the rest of the run, by one process with all four devices, has the same batches."""
    processes = start(records, tmp_path, steps=STEPS, save=1000)
    wait_for_step(processes, tmp_path, 5)
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = finish(processes)
    assert codes == [0, 0], "\n".join(outputs)
    saved = int(find_checkpoint(tmp_path).name)
    assert 5 <= saved < STEPS
    assert f"SIGTERM: saved step {saved}" in outputs[0]
    assert restore_params(tmp_path)[1]["data"]["video"]["examples"] == saved * 8
    run(records, tmp_path, processes=1, steps=STEPS, save=1000)
    here, there = losses(tmp_path), losses(uninterrupted)
    assert list(here) == list(there)
    for step in range(1, STEPS):
        assert here[step] == pytest.approx(there[step], rel=1e-4), step


@pytest.mark.slow
def test_two_processes_of_one_tensor_axis_train_as_one_process_does(records, tmp_path):
    """Their devices hold the same rows: each reads all of the batch."""
    flags = dict.fromkeys(range(2), ["--config.mesh.data=1", "--config.mesh.tensor=4"])
    for processes in (1, 2):
        workdir = tmp_path / str(processes)
        codes, outputs = finish(start(records, workdir, processes, flags, steps=5))
        assert codes == [0] * processes, "\n".join(outputs)
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, rel=1e-4), step


@pytest.mark.slow
def test_two_processes_probe_as_one_does(records, tmp_path):
    found = []
    for processes in (1, 2):
        workdir = tmp_path / str(processes)
        run(records, workdir, processes, steps=4, probe=True)
        rows = [row for row in read_metrics(workdir) if "probe/colour/knn_top1" in row]
        assert [row["step"] for row in rows] == [0, 2, 4]
        found.append([row["probe/colour/knn_top1"] for row in rows])
    # 40 records; a neighbour may change where two distances are equal but for rounding.
    np.testing.assert_allclose(*found, atol=2.5 / 40)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other_with_a_message(records, tmp_path, lost):
    processes = start(records, tmp_path, steps=100_000, save=100_000)
    wait_for_step(processes, tmp_path, 5)
    processes[lost].kill()
    killed = time.monotonic()
    output = processes[1 - lost].communicate(timeout=120)[0]
    assert time.monotonic() - killed < 120
    assert processes[1 - lost].returncode != 0
    assert f"process {1 - lost} of 2 stops: " in output
    assert "another process is gone or unreachable" in output
    processes[lost].communicate()


@pytest.mark.slow
def test_an_error_of_one_process_is_told_and_ends_the_other(records, tmp_path, capsys):
    """The second process does not find its data: a folder that is not mounted on its host."""
    elsewhere, workdir = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    folders = {0: records.parent, 1: elsewhere}
    began = time.monotonic()
    codes, outputs = finish(start(records.name, workdir, folders=folders, steps=5))
    assert time.monotonic() - began < 200
    assert codes[1] == 1 and codes[0] != 0, codes
    assert "codecvit train: codec" in outputs[1]
    assert main(["watch", str(workdir), "--once"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("1 ")]
    assert "failed" in line and "codec is no finished record set" in line


@pytest.mark.slow
def test_a_killed_worker_of_one_loader_ends_both_processes(records, tmp_path):
    """As where the kernel kills it for its memory: an error that nobody has foreseen."""
    flags = dict.fromkeys(range(2), ["--config.sources.video.loader_workers=1"])
    processes = start(records, tmp_path, flags=flags, steps=100_000, save=100_000)
    wait_for_step(processes, tmp_path, 5)
    (worker,) = loader_workers(processes[1].pid)
    os.kill(worker, signal.SIGKILL)
    killed = time.monotonic()
    codes, outputs = finish(processes)
    assert time.monotonic() - killed < 120
    assert codes[1] == 1 and codes[0] != 0, codes
    assert "RuntimeError: Worker process was terminated" in outputs[1]
    assert "process 0 of 2 stops: " in outputs[0]


def loader_workers(pid):
    threads = Path(f"/proc/{pid}/task").iterdir()
    children = [p for thread in threads for p in (thread / "children").read_text().split()]
    return [int(p) for p in children if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]


def test_a_wrong_process_number_is_named(records, tmp_path):
    env = {**os.environ, "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_PROCESS_ID": "first"}
    done = subprocess.run(
        [sys.executable, "-m", "codecvit", "train", f"--config={CONFIG}", f"--workdir={tmp_path}"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "JAX_PROCESS_ID = 'first' in the environment must be a number" in done.stderr
