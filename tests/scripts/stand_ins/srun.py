"""Stand-in of srun: the tasks of a step are processes of this machine, each with a HOME of its own.

Inside the job that the stand-in of sbatch runs. SIGTERM goes to every process of every task, as
Slurm signals a step.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from options import parse, refuse

options, command = parse("slurm", "srun", sys.argv[1:])
named = dict(options)
place = Path(os.environ["STAND_IN_DIR"])
if "SLURM_JOB_ID" not in os.environ:
    refuse("srun", "this stand-in runs inside a job")
nodes = int(named.get("--nodes", os.environ["SLURM_JOB_NUM_NODES"]))
tasks = int(named.get("--ntasks", os.environ["SLURM_NTASKS"]))
per_node = int(named.get("--ntasks-per-node", tasks))
if nodes * per_node != tasks:
    refuse("srun", f"{tasks} tasks are not {nodes} nodes with {per_node} each")
with (place / "steps.txt").open("a") as log:
    log.write(" ".join(sys.argv[1:]) + "\n")

started = []
for task in range(tasks):
    home = place / f"home-{task}"
    home.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "HOME": str(home),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_NTASKS": str(tasks),
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task % per_node),
        "SLURM_NODEID": str(task // per_node),
    }
    # srun asks for --cpus-per-task anew; a task without it has one core.
    environment["SLURM_CPUS_PER_TASK"] = named.get("--cpus-per-task", "1")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started.append(subprocess.Popen(command, env=environment, start_new_session=True, **pipes))


def show(task: int, process: subprocess.Popen[str]) -> None:
    for line in process.stdout:
        label = f"{task}: " if "--label" in named else ""
        print(f"{label}{line}", end="", flush=True)


def to_all(number: int, _: object = None) -> None:
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, number)


readers = [threading.Thread(target=show, args=item) for item in enumerate(started)]
for reader in readers:
    reader.start()
signal.signal(signal.SIGTERM, to_all)
(place / "step.pid").write_text(str(os.getpid()))
patience, first_end = int(named.get("--wait", 0)), None
while any(process.poll() is None for process in started):
    time.sleep(0.05)
    ended = [process.returncode for process in started if process.returncode is not None]
    if ended and first_end is None:
        first_end = time.monotonic()
    bad = named.get("--kill-on-bad-exit", "0") != "0" and any(ended)
    if bad or (patience and first_end and time.monotonic() - first_end > patience):
        to_all(signal.SIGKILL)
for reader in readers:
    reader.join()
(place / "step.pid").unlink()
codes = [process.returncode for process in started]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
