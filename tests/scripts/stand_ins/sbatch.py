"""Stand-in of sbatch: runs the job script here, again for each time that it was requeued.

Unlike the real one it waits for the end of the job.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from options import parse, refuse

place = Path(os.environ["STAND_IN_DIR"])
options, (script, *arguments) = parse("slurm", "sbatch", sys.argv[1:])
in_script = []
for line in Path(script).read_text().splitlines():
    if line.startswith("#SBATCH "):
        found, rest = parse("slurm", "sbatch", line.split()[1:])
        if rest:
            refuse("sbatch", f"not understood: {line}")
        in_script += found
    elif line and not line.startswith("#"):
        break
job = {**dict(in_script), **dict(options)}
# Any number; jax derives a port from it.
number = str(10_000 + os.getpid() % 4096)
hosts, per_host = int(job.get("--nodes", 1)), int(job["--ntasks-per-node"])
environment = {
    **os.environ,
    "SLURM_JOB_ID": number,
    "SLURM_SUBMIT_DIR": os.getcwd(),  # noqa: PTH109
    "SLURM_JOB_NUM_NODES": str(hosts),
    "SLURM_NTASKS_PER_NODE": str(per_host),
    "SLURM_NTASKS": str(hosts * per_host),
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
if "--cpus-per-task" in job:
    environment["SLURM_CPUS_PER_TASK"] = job["--cpus-per-task"]
if job.get("--gpus-per-node", "0") != "0":
    environment["SLURM_GPUS_ON_NODE"] = job["--gpus-per-node"]
# The real one runs a copy, so that a script must not look for files beside itself.
spool = place / "spool"
spool.mkdir(exist_ok=True)
copy = spool / "slurm_script"
shutil.copy(script, copy)
copy.chmod(0o755)

(place / "job").write_text(number)
restarts = 0
while True:
    environment["SLURM_RESTART_COUNT"] = str(restarts)
    process = subprocess.Popen([str(copy), *arguments], env=environment)
    (place / "batch.pid").write_text(str(process.pid))
    code = process.wait()
    requeued = place / f"requeued-{number}"
    if not requeued.exists():
        sys.exit(code)
    if "--requeue" not in job:
        refuse("sbatch", "the job may not be requeued")
    requeued.unlink()
    restarts += 1
    print(f"sbatch: start {restarts + 1}", flush=True)
