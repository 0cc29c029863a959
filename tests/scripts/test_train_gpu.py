"""scripts/pretrain/train_gpu.sh and train.slurm: processes, devices, signals, requeue."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

GPU = "scripts/pretrain/train_gpu.sh"
SLURM = "scripts/pretrain/train.slurm"
SMI = 'echo "GPU 0: Some (UUID: a)"; echo "GPU 1: Some (UUID: b)"'
# Notes what a process is told; with it, that it was told to stop.
PROCESS = """
name=${JAX_PROCESS_ID:-${SLURM_PROCID:-alone}}
trap 'echo stopped >> "$STAND_IN_DIR/told-$name"; exit "$STOPPED"' TERM
env | grep -E '^(JAX|XLA_PYTHON|SLURM|HOME)' > "$STAND_IN_DIR/told-$name"
printf '%s\\n' "$@" > "$STAND_IN_DIR/words-$name"
[ "$name" != "$FAILS" ] || exit 7
[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || TENTHS=0
for ((i = 0; i < TENTHS; i++)); do sleep 0.1; done
"""


@pytest.fixture
def process(shell):
    shell.script("process", PROCESS)
    return {"TENTHS": "0", "STOPPED": "75", "FAILS": "nobody"}


def told(shell, name):
    lines = (shell.place / f"told-{name}").read_text().splitlines()
    return dict(line.partition("=")[::2] for line in lines)


def wait_for(*paths: Path):
    deadline = time.monotonic() + 30
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, paths
        time.sleep(0.02)


def test_one_process_per_gpu_of_one_host(shell, process, hostile):
    shell.script("nvidia-smi", SMI)
    status, output = shell.run("bash", GPU, "process", hostile, **process)
    assert status == 0, output
    one, two = told(shell, 0), told(shell, 1)
    assert one["JAX_COORDINATOR_ADDRESS"] == two["JAX_COORDINATOR_ADDRESS"]
    assert one["JAX_COORDINATOR_ADDRESS"].startswith("127.0.0.1:")
    assert one["JAX_NUM_PROCESSES"] == two["JAX_NUM_PROCESSES"] == "2"
    assert (one["JAX_LOCAL_DEVICE_IDS"], two["JAX_LOCAL_DEVICE_IDS"]) == ("0", "1")
    assert one["JAX_PLATFORMS"] == "cuda,cpu"
    assert one["XLA_PYTHON_CLIENT_MEM_FRACTION"] == ".9"
    assert (shell.place / "words-1").read_text() == f"{hostile}\n"
    assert not (shell.root / "hacked").exists()


def test_one_process_for_all_gpus_needs_no_coordinator(shell, process):
    status, output = shell.run("bash", GPU, "process", **process, GPUS="8", PROCESSES="1")
    assert status == 0, output
    assert not [key for key in told(shell, "alone") if key.startswith("JAX_P")][1:]  # PLATFORMS


def devices(commands):
    found = []
    for words in commands:
        variables = dict(word.split("=", 1) for word in words[1:] if word.startswith("JAX_"))
        found.append((variables["JAX_PROCESS_ID"], variables.get("JAX_LOCAL_DEVICE_IDS")))
    return found


def test_several_hosts_count_through(shell):
    hosts = {"NNODES": "3", "COORDINATOR": "node0:4000", "GPUS": "4"}
    commands = shell.commands("bash", GPU, **hosts, NODE_RANK="2")
    assert devices(commands) == [("8", "0"), ("9", "1"), ("10", "2"), ("11", "3")]
    for words in commands:
        assert "JAX_COORDINATOR_ADDRESS=node0:4000" in words and "JAX_NUM_PROCESSES=12" in words
        assert words[-2:] == ["bash", "scripts/pretrain/train.sh"]
    commands = shell.commands("bash", GPU, **hosts, NODE_RANK="2", PROCESSES="2")
    assert devices(commands) == [("4", "0,1"), ("5", "2,3")]
    assert devices(shell.commands("bash", GPU, **{**hosts, "GPUS": "0"})) == [("0", None)]


def test_what_runs(shell):
    cpu = {"GPUS": "0"}
    (words,) = shell.commands("bash", GPU, "--config.seed=3", **cpu)
    assert words == ["env", "bash", "scripts/pretrain/train.sh", "--config.seed=3"]
    (words,) = shell.commands("bash", GPU, "codecvit", "train", "--workdir=w", **cpu)
    assert words[1:] == ["bash", "scripts/run_to_end.sh", "codecvit", "train", "--workdir=w"]
    (words,) = shell.commands("bash", GPU, "bash", "scripts/contrastive/train.sh", **cpu)
    assert words == ["env", "bash", "scripts/contrastive/train.sh"]
    assert len(shell.commands("bash", GPU, CUDA_VISIBLE_DEVICES="4,6,7")) == 3


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"GPUS": ""}, "no nvidia-smi here, so no GPU is known: GPUS=0"),
        ({"GPUS": "all"}, "GPUS=all must be a whole number"),
        ({"PROCESSES": "3"}, "PROCESSES=3 must divide GPUS=8"),
        ({"PROCESSES": "0"}, "PROCESSES=0 must be at least 1"),
        ({"NNODES": "2", "NODE_RANK": "2", "COORDINATOR": "h:1"}, "NODE_RANK=2 must lie in 0..1"),
        ({"NNODES": "2"}, "must be HOST:PORT of host 0"),
        ({"NNODES": "2", "COORDINATOR": "h"}, "COORDINATOR=h must be HOST:PORT"),
        ({"COORDINATOR": "h:1"}, "COORDINATOR=h:1 goes with NNODES"),
        ({"GRACE": "long"}, "GRACE=long must be a whole number"),
        ({"LOCAL": "1"}, "LOCAL=1 is a run of one process"),
        ({"TPU_NAME": "t"}, "TPU_NAME=t: this script is for GPUs"),
        ({"SLURM_JOB_ID": "1", "NNODES": "2"}, "NNODES=2: a Slurm job has its own"),
        ({"SLURM_JOB_ID": "1"}, "the job was made without --ntasks-per-node"),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS_PER_NODE": "4"}, "GPUS=8 per host and 4 tasks"),
    ],
)
def test_wrong_values_are_refused_by_name(shell, variables, message):
    if not variables.get("GPUS", "8"):
        shell.environment["PATH"] = f"{shell.place / 'bin'}:/usr/bin:/bin"
        if any(Path(folder, "nvidia-smi").exists() for folder in ("/usr/bin", "/bin")):
            pytest.skip("this machine has an nvidia-smi")
    status, output = shell.run("bash", GPU, **{"GPUS": "8", "DRY_RUN": "1", **variables})
    assert status == 2, output
    assert message in output


def test_a_signal_goes_to_all_processes_and_their_status_comes_back(shell, process):
    process |= {"TENTHS": "600", "GPUS": "2"}
    for stopped, expected in [("75", 75), ("0", 0)]:
        names = [shell.place / f"told-{i}" for i in range(2)]
        started = shell.start("bash", GPU, "process", **{**process, "STOPPED": stopped})
        words = [shell.place / f"words-{i}" for i in range(2)]
        wait_for(*words)
        started.send_signal(signal.SIGTERM)
        output = started.communicate(timeout=20)[0]
        assert started.returncode == expected, output
        assert [name.read_text().splitlines()[-1] for name in names] == ["stopped", "stopped"]
        for path in words:
            path.unlink()


def test_one_that_fails_ends_the_others_after_the_grace(shell, process):
    process |= {"TENTHS": "600", "FAILS": "1", "GPUS": "2", "GRACE": "1"}
    begun = time.monotonic()
    status, output = shell.run("bash", GPU, "process", **process)
    assert status == 7
    assert "1 processes still run 1 s after one has failed" in output
    assert time.monotonic() - begun < 20


# --- Slurm ---


@pytest.fixture
def slurm(shell, process):
    shell.stand_in("srun", "sbatch", "scontrol")
    return process


def test_a_job_has_a_task_per_gpu(shell, slurm, hostile):
    job = ["sbatch", "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", SLURM]
    status, output = shell.run(*job, "process", hostile, **slurm)
    assert status == 0, output
    tasks = [told(shell, i) for i in range(4)]
    assert [task["SLURM_LOCALID"] for task in tasks] == ["0", "1", "0", "1"]
    assert {task["SLURM_NTASKS"] for task in tasks} == {"4"}
    assert len({task["HOME"] for task in tasks}) == 4
    assert {task["SLURM_CPUS_PER_TASK"] for task in tasks} == {"12"}
    assert {task["JAX_PLATFORMS"] for task in tasks} == {"cuda,cpu"}
    assert not [key for key in tasks[0] if key.startswith(("JAX_COORD", "JAX_LOCAL"))]
    assert (shell.place / "words-3").read_text() == f"{hostile}\n"
    step = (shell.place / "steps.txt").read_text()
    assert "--gpu-bind=none" in step and "--kill-on-bad-exit=0" in step and "--wait=90" in step


def test_the_stand_ins_refuse_what_slurm_does_not_know(shell, slurm):
    inside = {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1"}
    for words in (["srun", "--gpus-bind=none", "true"], ["sbatch", "--gpu-per-node=2", SLURM]):
        status, output = shell.run(*words, **slurm, **inside)
        assert status == 125 and "unrecognized option" in output


@pytest.mark.parametrize("shell_too", [False, True])
def test_a_preempted_job_goes_back_into_the_queue(shell, slurm, shell_too):
    """Slurm may tell the tasks alone (--signal), or the batch shell as well (preemption)."""
    job = ["sbatch", "--ntasks-per-node=2", "--gpus-per-node=0", SLURM, "process"]
    started = shell.start(*job, **{**slurm, "TENTHS": "600"}, GPUS="0")
    names = [shell.place / f"words-{i}" for i in range(2)]
    wait_for(*names, shell.place / "step.pid")
    if shell_too:
        os.kill(int((shell.place / "batch.pid").read_text()), signal.SIGTERM)
    os.kill(int((shell.place / "step.pid").read_text()), signal.SIGTERM)
    output = started.communicate(timeout=60)[0]
    assert started.returncode == 0, output
    assert "saved; back into the queue" in output and "sbatch: start 2" in output
    assert "sbatch: start 3" not in output


def test_a_failed_job_does_not(shell, slurm):
    job = ["sbatch", "--ntasks-per-node=2", "--gpus-per-node=0", SLURM, "process"]
    status, output = shell.run(*job, **{**slurm, "FAILS": "1"}, GPUS="0")
    assert status == 7
    assert "start 2" not in output


def test_the_lists_of_options_are_those_of_a_named_version():
    for path in sorted((Path(__file__).parent / "stand_ins").glob("*_options.json")):
        found = json.loads(path.read_text())
        assert found.pop("source")
        for command, kinds in found.items():
            options = [o for lines in kinds.values() for line in lines for o in line.split()]
            assert len(options) == len(set(options)), (path.name, command)
            assert all(option.startswith("-") for option in options)
