"""A cloud of local processes, and tpu_command.sh in front of it."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .gcloud_stand_in import processes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PLACE = ["--tpu=pod", "--zone=zone-a", "--project=proj"]


class Cloud:
    """TPUs of the stand-in.

    Args:
      folder: where they live.
      workers: how many workers a new TPU gets.
    """

    root = ROOT

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        shim = self.bin / "gcloud"
        # Imported, not run: its bytecode is kept, and these processes are many.
        run = f"import sys; sys.path[:0] = ['{HERE}']; import gcloud_stand_in as g; "
        run += "sys.exit(g.main(sys.argv[1:]))"
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S -c "{run}" "$@"\n')
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
            (self.home(worker, name) / "tpu_logs").mkdir(parents=True, exist_ok=True)

    def home(self, worker: int, name: str = "pod") -> Path:
        return self.folder / "workers" / name / str(worker)

    def fail(self, verb: str, worker: int, times: int) -> None:
        self.write(failures=[{"verb": verb, "worker": worker, "times": times}])

    def calls(self) -> list[list[str]]:
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def processes(self, worker: int) -> list[int]:
        return processes(self.home(worker))

    def preempt(self, worker: int = 0) -> None:
        """SIGTERM to everything on one worker; then the whole TPU is gone."""
        told = self.processes(worker)
        assert told
        for pid in told:
            with contextlib.suppress(ProcessLookupError):
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
        """The stand-in is the first gcloud on PATH; a real one behind it is never reached."""
        keep = {key: os.environ[key] for key in ("HOME", "LANG") if key in os.environ}
        path = f"{self.bin}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        assert shutil.which("gcloud", path=path) == str(self.bin / "gcloud")
        return keep | {"PATH": path, "GCLOUD_STAND_IN": str(self.folder), "PYTHON": sys.executable}

    def start(self, sub: str, *args: str) -> subprocess.Popen:
        """The same by tpu_command.sh, as a process of its own."""
        command = [str(ROOT / "tpu_command.sh"), sub, "--retry-wait=0.01", *PLACE, *args]
        pipes = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "stdin": subprocess.DEVNULL,
        }
        return subprocess.Popen(command, cwd=ROOT, env=self.env, text=True, **pipes)

    def call(self, *args: str, code: int = 0, answer: str = "", cwd: Path = ROOT) -> str:
        """Runs a sub-command on the TPU `pod`, in this process, and returns what it prints."""
        out = io.StringIO()
        sub, *rest = args
        with pytest.MonkeyPatch.context() as patch:
            for key in set(os.environ) - set(self.env):
                patch.delenv(key)
            for key, value in self.env.items():
                patch.setenv(key, value)
            patch.chdir(cwd)
            patch.setattr("sys.stdin", io.StringIO(answer))
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                returned = tool().main([sub, "--retry-wait=0.01", *PLACE, *rest])
        assert returned == code, out.getvalue()
        return out.getvalue()

    def shrink(self) -> None:
        """The TPU has one worker only."""
        known = self.read()
        known["nodes"]["pod"]["workers"] = 1
        self.write(nodes=known["nodes"], workers=1)

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
                for pid in processes(self.home(worker, name)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


@functools.cache
def tool():
    """scripts/tpu_command.py."""
    spec = importlib.util.spec_from_file_location("tpu_command", ROOT / "scripts/tpu_command.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def until(true, seconds: float = 20) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
