"""A cloud of local processes, and tpu_command.sh in front of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PLACE = ["--tpu=pod", "--zone=zone-a", "--project=proj"]


class Cloud:
    """TPUs of the stand-in.

    Args:
      folder: where they live.
      workers: how many workers a new TPU gets.
    """

    name = "pod"

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        shim = self.bin / "gcloud"
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} -I {HERE}/gcloud_stand_in.py "$@"\n')
        shim.chmod(0o755)
        (folder / "calls.jsonl").touch()
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
        self.write(
            nodes={}, queued={}, zones=["zone-a", "zone-b"], workers=workers, failures=[], cut=0,
            env=env,
        )  # fmt: skip

    # --- what the stand-in knows
    def read(self) -> dict:
        return json.loads((self.folder / "state.json").read_text())

    def write(self, **values) -> None:
        path = self.folder / "state.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | values))

    def make(self, name: str = "pod", state: str = "READY") -> None:
        known = self.read()
        node = {"state": state, "zone": "zone-a", "project": "proj", "accelerator": "v4-16"}
        known["nodes"][name] = node | {"workers": known["workers"]}
        self.write(nodes=known["nodes"])
        for worker in range(known["workers"]):
            (self.home(worker, name) / "tpu_logs").mkdir(parents=True)

    def home(self, worker: int, name: str = "pod") -> Path:
        return self.folder / "workers" / name / str(worker)

    def fail(self, verb: str, worker: int, times: int) -> None:
        self.write(failures=[{"verb": verb, "worker": worker, "times": times}])

    def calls(self) -> list[list[str]]:
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def processes(self, worker: int) -> list[int]:
        mark, found = f"STAND_IN_WORKER={self.home(worker)}".encode(), []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def preempt(self, worker: int = 0) -> None:
        """SIGTERM to everything on one worker; then the whole TPU is gone."""
        told = self.processes(worker)
        assert told
        for pid in told:
            os.kill(pid, signal.SIGTERM)
        until(lambda: not self.processes(worker), 120)
        known = self.read()
        known["nodes"]["pod"]["state"] = "PREEMPTED"
        for entry in known["queued"].values():
            entry["state"] = "SUSPENDED"
        self.write(nodes=known["nodes"], queued=known["queued"])

    # --- the tool
    @property
    def env(self) -> dict[str, str]:
        """The stand-in is the first gcloud on PATH, and it must be there."""
        keep = {key: os.environ[key] for key in ("HOME", "LANG") if key in os.environ}
        path = f"{self.bin}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        return keep | {"PATH": path, "GCLOUD_STAND_IN": str(self.folder), "PYTHON": sys.executable}

    def start(self, *args: str, cwd: Path = ROOT, **options) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.PIPE}
        sub, *rest = args
        behind = rest.index("--") if "--" in rest else len(rest)
        quick = ["--retry-wait=0.01", *PLACE]
        command = [str(ROOT / "tpu_command.sh"), sub, *quick, *rest[:behind], *rest[behind:]]
        return subprocess.Popen(command, cwd=cwd, env=self.env, text=True, **pipes, **options)

    def call(self, *args: str, code: int = 0, answer: str = "", cwd: Path = ROOT) -> str:
        """Runs a sub-command on the TPU `pod` and returns what it prints."""
        process = self.start(*args, cwd=cwd)
        out = process.communicate(answer, timeout=120)[0]
        assert process.returncode == code, out
        return out

    def install(self, *files: tuple[str, str]) -> None:
        """A tree of these files on all workers, without the way through sync."""
        for worker in range(self.read()["workers"]):
            home = self.home(worker)
            (home / ".codecvit").mkdir(exist_ok=True)
            (home / ".codecvit" / "worker.sh").write_bytes(
                (ROOT / "scripts/worker.sh").read_bytes()
            )
            for name, text in (("here", ""), *files):
                path = home / "codecvit" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

    def end(self) -> None:
        for name in self.read()["nodes"]:
            for worker in range(self.read()["workers"]):
                assert name == "pod"
                for pid in self.processes(worker):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def until(true, seconds: float = 20) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


@pytest.fixture
def wait_until():
    """A function that waits for a condition."""
    return until


@pytest.fixture
def empty_cloud(tmp_path):
    """No TPU yet; new ones have two workers."""
    folder = tmp_path / "cloud"
    folder.mkdir()
    cloud = Cloud(folder, workers=2)
    yield cloud
    cloud.end()


@pytest.fixture
def cloud(empty_cloud):
    """The TPU `pod` with two workers, empty homes."""
    empty_cloud.make()
    return empty_cloud


@pytest.fixture
def jobs(cloud):
    """The TPU `pod` with a tree on its workers."""
    cloud.install()
    return cloud
