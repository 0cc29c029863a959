"""The trainer's command line: dry runs, logs, the flags that jax reads first."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from compiler import xla_flags
from ml_collections import ConfigDict

from codecvit import __version__
from codecvit.trainers import command
from codecvit.trainers.agreement import source_hash
from codecvit.trainers.command import prepare_jax
from codecvit.trainers.stamp import git_commit

CONFIG = Path(__file__).parent / "tiny_config.py"


def train(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "codecvit", "train", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": xla_flags()},
    )


def test_a_dry_run_tells_about_a_mesh_that_is_not_there(tmp_path):
    """64 devices, no records: nothing is read."""
    done = train(
        f"--config={CONFIG}:records=nowhere",
        "--dry-run",
        "--devices=64",
        "--config.mesh.data=16",
        "--config.mesh.fsdp=2",
        "--config.mesh.tensor=2",
        "--config.sources.video.batch_size=64",
        "--config.heads.main.num_classes=4096",
    )
    assert done.returncode == 0, done.stderr
    assert "64 devices = 16 data x 2 fsdp x 2 tensor" in done.stdout
    (centres,) = [line for line in done.stdout.splitlines() if "heads/main/centres" in line]
    # 4,096 x 64 float32 over 64 devices.
    assert centres.split()[-1] == "0.016"
    assert "data,fsdp,tensor x -" in centres
    (kernel,) = [line for line in done.stdout.splitlines() if "blocks/attn/qkv/kernel" in line]
    assert "2 x 64 x 192" in kernel
    assert "- x fsdp x tensor" in kernel
    # 3 * depth * (24 D^2-like weights + 4 L D) per token, and 6 D C per sample for the head.
    per_token = 3 * 2 * (8 * 64**2 + 4 * 64 * 96 + 4 * 16 * 64)
    flops = 64 * (16 * per_token + 6 * 64 * 4096)
    assert f"64 samples, 1,024 tokens, {flops / 1e12:,.2f} TFLOP a step" in done.stdout
    assert "MiB of temporaries" in done.stdout


def test_what_does_not_fit_a_mesh_is_named_without_devices(tmp_path):
    done = train(f"--config={CONFIG}", "--dry-run", "--devices=4", "--config.mesh.data=3")
    assert done.returncode == 1
    assert "asks for 3 x 1 x 1 = 3 devices" in done.stderr
    done = train(f"--config={CONFIG}", "--workdir=x", "--devices=4")
    assert done.returncode == 2
    assert "--devices goes with --dry-run" in done.stderr


@pytest.mark.slow
def test_each_process_keeps_a_log_of_its_own(records, tmp_path):
    done = train(
        f"--config={CONFIG}:records={records},steps=5",
        f"--workdir={tmp_path}",
        "--config.optim.lr=1e30",
        "--config.optim.warmup_steps=0",
        "--config.max_nan_steps=2",
    )
    assert done.returncode == 1
    text = (tmp_path / "logs" / "process-000.log").read_text()
    assert "loss or gradient not finite for 2 steps in a row" in text
    assert "losses: video" in text


@pytest.mark.slow
def test_a_profile_window_leaves_a_trace(records, tmp_path):
    done = train(
        f"--config={CONFIG}:records={records},steps=4",
        f"--workdir={tmp_path}",
        "--config.profile.start_step=2",
        "--config.profile.num_steps=2",
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_any_error_of_one_of_several_processes_ends_it_at_once(tmp_path, monkeypatch, capsys):
    """An ordinary exit would wait for the others for minutes, and they for this one."""

    class Left(BaseException):
        pass

    def leave(status):
        raise Left(status)

    def run(config, workdir):
        raise RuntimeError("a worker of the loader was killed")

    arguments = ("codecvit train", "", dict, run, [f"--config={CONFIG}", f"--workdir={tmp_path}"])
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(RuntimeError, match="was killed"):
        command.run_command(*arguments)
    monkeypatch.setattr(command.jax, "process_count", lambda: 2)
    with pytest.raises(Left, match="1"):
        command.run_command(*arguments)
    assert "RuntimeError: a worker of the loader was killed" in capsys.readouterr().err


def test_each_start_says_where_and_with_which_code(tmp_path):
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path}"]
    for _ in range(2):
        assert command.run_command("codecvit train", "", dict, lambda *_: None, arguments) == 0
    lines = (tmp_path / "logs" / "process-000.log").read_text().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert (
            f"start on host {socket.gethostname()}, process 0 of 1: codecvit {__version__}, "
            in line
        )
        assert f"source code {source_hash(Path(command.__file__).parents[1])}, " in line
        assert f"jax {jax.__version__}, " in line


def test_the_commit_of_a_checkout_is_told(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
        done = subprocess.run(
            ["git", "-C", tmp_path, *who, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert git_commit(tmp_path) == ""
    git("init")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert len(commit) == 40 and git_commit(tmp_path) == commit
    assert git_commit(tmp_path / "a") == ""
    (tmp_path / "a" / "x.py").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"


def test_determinism_is_asked_of_the_compiler_before_it_starts(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    prepare_jax(ConfigDict({"deterministic": False}))
    assert os.environ["XLA_FLAGS"] == "--xla_a=1"
    prepare_jax(ConfigDict({"deterministic": True}))
    assert os.environ["XLA_FLAGS"] == "--xla_a=1 --xla_gpu_deterministic_ops=true"


def test_wandb_without_its_package_is_refused_by_name(records, tmp_path, monkeypatch):
    from codecvit.metrics import start_wandb

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"config\.wandb_project = 'p' needs .* codecvit\[wandb\]"):
        start_wandb("p", tmp_path, {})


def test_wandb_gets_every_line_and_continues_its_run(tmp_path, monkeypatch):
    """Against a stand-in that has what the real package has: init(...) -> run with log, finish."""
    from codecvit.metrics import MetricWriter

    calls = []

    class Run:
        def log(self, values, step):
            calls.append(("log", step, values))

        def finish(self):
            calls.append(("finish",))

    class Package:
        @staticmethod
        def init(**options):
            calls.append(("init", options["project"], options["id"], options["resume"]))
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Package)
    for step in (1, 2):
        writer = MetricWriter(tmp_path, 2, step - 1, wandb_project="p", config={"a": 1})
        writer.write(step, {"loss": 1.0})
        writer.close()
    inits = [call for call in calls if call[0] == "init"]
    assert inits[0] == inits[1]
    assert inits[0][1] == "p" and inits[0][3] == "allow"
    assert [call[1] for call in calls if call[0] == "log"] == [1, 2]
    assert calls.count(("finish",)) == 2
