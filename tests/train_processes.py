"""Runs of several real processes, for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from compiler import xla_flags

CONFIG = Path(__file__).parent / "trainers" / "tiny_config.py"


def start(records, workdir, processes=2, flags=None, environment=None, folders=None, **arguments):
    """The processes of one run, four devices together; `flags`, `folders`: theirs by process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = ",".join(f"{k}={v}" for k, v in {"records": records, **arguments}.items())
    command = [sys.executable, "-m", "codecvit", "train"]
    command += [f"--config={CONFIG}:{settings}", f"--workdir={workdir}"]
    started, devices = [], 4 // processes
    for number in range(processes):
        env = {**os.environ, **(environment or {}), "XLA_FLAGS": xla_flags(devices)}
        if processes > 1:
            env |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(number),
            }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        pipes["cwd"] = (folders or {}).get(number)
        started.append(subprocess.Popen(command + (flags or {}).get(number, []), env=env, **pipes))
    return started


def finish(processes, timeout=240):
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def run(records, workdir, processes=2, environment=None, **arguments):
    codes, outputs = finish(start(records, workdir, processes, None, environment, **arguments))
    assert codes == [0] * processes, "\n".join(outputs)
    return outputs


def wait_for_step(processes, workdir, step):
    path = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert processes[0].poll() is None, processes[0].communicate()[0]
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"no step {step} in {path}")
