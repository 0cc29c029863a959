"""train: make the TPU, bring code and environment there, run, and go on after every preemption."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from . import jobs
from .gcloud import Pod, PodError, Runner
from .nodes import READY, Node, Request, describe, ensure


@dataclass(frozen=True)
class Training:
    """What `train` does.

    Args:
      command: runs on every worker; run again, it must go on where it stopped.
      root: the local tree.
      remote_dir: where it goes.
      max_mb: see bundle.make_bundle.
      settings: arguments of setup.sh; None skips it.
      job: name of the jobs, to which the time of their start is added.
      request: the TPU to make; None: it must be there.
      forever: start again until the command succeeds.
      tries: give up after so many ends in a row that were no preemption and brought no progress.
      poll: seconds between two looks.
      grace: see jobs.wait.
      port: of jax's coordinator, on worker 0.
    """

    command: list[str]
    root: Path
    remote_dir: str
    max_mb: float
    settings: list[str] | None
    job: str
    request: Request | None
    forever: bool
    tries: int
    poll: float
    grace: float
    port: int


def train(runner: Runner, pod: Pod, plan: Training) -> int:
    """Runs the plan.

    Returns:
      0, or the exit status of the job when it is given up.

    Raises:
      PodError: the TPU or a worker cannot be brought to work.
    """
    best, idle = (0, -1), 0
    while True:
        outcome = _once(runner, pod, plan)
        if runner.dry_run:
            return 0
        runner.say(f"job on {pod.name}: {outcome.kind}: {outcome.why}")
        if outcome.kind == "finished":
            return 0
        if outcome.kind == "stopped" or not plan.forever:
            return outcome.code
        if outcome.kind != "preempted":
            idle = 0 if outcome.progress > best else idle + 1
            if idle >= plan.tries:
                runner.say(
                    f"given up: {idle} ends in a row without progress beyond {_told(best)}; the "
                    f"log: ./tpu_command.sh logs --tpu {pod.name} --zone {pod.zone} "
                    f"--project {pod.project}"
                )
                return outcome.code
        best = max(best, outcome.progress)
        runner.say(f"going on after {_told(best)}")
        time.sleep(plan.poll)


def _once(runner: Runner, pod: Pod, plan: Training) -> jobs.Outcome:
    node = ensure(runner, pod, plan.request, plan.poll)
    job = _running(runner, pod, plan, node)
    try:
        if job:
            runner.say(f"job {job} is running there already: watching it")
        else:
            job = f"{plan.job}-{datetime.now():%Y%m%d-%H%M%S}"
            if runner.dry_run:
                job = f"{plan.job}-TIME"
            jobs.sync(runner, pod, node, plan.root, plan.remote_dir, plan.max_mb)
            if plan.settings is not None:
                jobs.prepare(runner, pod, node, plan.remote_dir, plan.settings)
            jobs.start(runner, pod, node, job, plan.remote_dir, plan.command, plan.port)
        if runner.dry_run:
            return jobs.Outcome("finished", 0, "", (0, -1))
        return jobs.wait(runner, pod, node, job, plan.poll, plan.grace)
    except PodError as error:
        # Taken away while code was copied: that is a preemption as well.
        state = describe(runner, pod).state
        if not plan.forever:
            raise
        kind = "failed" if state == READY else "preempted"
        return jobs.Outcome(kind, 1, f"TPU {pod.name} is {state}; {error}", (0, -1))


def _running(runner: Runner, pod: Pod, plan: Training, node: Node) -> str:
    """A job of this plan that an earlier call has left running, "" for none."""
    if runner.dry_run:
        return ""
    # On a fresh TPU there is no worker.sh to ask, which is no failure to try again.
    told = jobs.statuses(Runner(retries=0, parallel=runner.parallel), pod, node)
    for said in told.values():
        running = isinstance(said, jobs.Status) and said.state == "running"
        if running and said.job.startswith(f"{plan.job}-"):
            return said.job
    return ""


def _told(progress: tuple[int, int]) -> str:
    commands, step = progress
    return f"step {step} of command {commands}" if step >= 0 else "the start"
