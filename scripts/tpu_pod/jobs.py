"""Code and jobs on the workers: sync, prepare, run, status, logs, kill."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .bundle import make_bundle
from .gcloud import Pod, Runner, all_well
from .nodes import READY, Node, describe

WORKER = "bash .codecvit/worker.sh"
JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
COORDINATOR_PORT = 8482  # jax's own on TPU VMs
UNFINISHED = 75  # of our launch scripts: a signal came, the run saved and wants to be started again
LOST_POLLS = 5  # looks in a row at which a worker gives no answer, and then it counts as lost


@dataclass(frozen=True)
class Status:
    """One worker's job, as worker.sh tells it.

    Args:
      job: its name.
      state: running, exited, stopped (by kill), interrupted (by a signal from elsewhere), lost
        (killed, or the machine was restarted).
      code: exit status, None while there is none.
      progress: (commands that the job's script printed as "$ ...", step): grows as it gets on.
      bytes: of its log.
      age: seconds since the log grew.
      seconds: since the start.
    """

    job: str
    state: str
    code: int | None
    progress: tuple[int, int]
    bytes: int
    age: int
    seconds: int

    @classmethod
    def parse(cls, line: str) -> Status:
        told = dict(word.split("=", 1) for word in line.split())
        code = None if told["code"] == "-" else int(told["code"])
        progress = (int(told["marks"]), int(told["step"]))
        numbers = (int(told[name]) for name in ("bytes", "age", "seconds"))
        return cls(told["job"], told["state"], code, progress, *numbers)


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Args:
      kind: finished, failed, stopped, interrupted, or preempted.
      code: 0, or the first exit status of a worker that is not 0.
      why: in words, with the worker's name.
      progress: how far it got.
    """

    kind: str
    code: int
    why: str
    progress: tuple[int, int]


def remote_dir(name: str) -> str:
    """A folder on the workers, quoted for their shell: absolute, or below the home folder.

    Raises:
      ValueError: empty, the home folder itself, or on its way out of it.
    """
    name = name[2:] if name.startswith("~/") else name
    parts = Path(name).parts
    if not parts or ".." in parts or name in ("/", "~"):
        raise ValueError(f"--remote-dir = {name!r} must name a folder of its own, without ..")
    return shlex.quote(name if name.startswith("/") else f"./{name}")


def check_job(name: str) -> str:
    """The name of a job.

    Raises:
      ValueError: it could not be a file's name and a word of a shell as it is.
    """
    if not JOB_NAME.fullmatch(name):
        raise ValueError(
            f"--job = {name!r}: at most 100 letters, digits, and . _ - after the first"
        )
    return name


def sync(runner: Runner, pod: Pod, node: Node, root: Path, to: str, max_mb: float) -> None:
    """Makes the tree on each worker equal to the local one.

    Raises:
      PodError: a worker failed every time.
    """
    where = remote_dir(to)
    with tempfile.TemporaryDirectory(prefix="codecvit-sync-") as folder:
        bundle = make_bundle(root, Path(folder), max_mb)
        runner.say(f"{bundle.files} files, {bundle.size / 1e6:.1f} MB of {os.fspath(root)!r}")
        name = bundle.path.name
        command = (
            f"mkdir -p .codecvit && tar -xzf {name} -C .codecvit worker.sh && "
            f"{WORKER} unpack {name} {bundle.sha256} {where}"
        )
        left = list(range(len(node.addresses)))
        for attempt in range(1 + runner.retries):
            copied = runner.each(left, lambda w: pod.scp(w, name), "scp", cwd=Path(folder))
            all_well(copied, "copying the code")
            unpack = [left, lambda w: pod.ssh(w, command), "unpacking"]
            done = runner.each(*unpack, show=True, again=False)
            left = [worker for worker, result in done.items() if result.code not in (0, 3)]
            if not left or attempt == runner.retries:
                all_well(done, "unpacking the code")
                return
            # It may have arrived damaged: copied again, not just unpacked again.
            runner.say(f"unpacking failed on workers {left}; copying again")


def prepare(runner: Runner, pod: Pod, node: Node, to: str, settings: list[str]) -> None:
    """Runs setup.sh on each worker.

    Raises:
      PodError: a worker failed every time.
    """
    command = f"cd -- {remote_dir(to)} && bash setup.sh {shlex.join(settings)}"
    workers = range(len(node.addresses))
    done = runner.each(workers, lambda w: pod.ssh(w, command), "setup.sh", show=True)
    all_well(done, "setup.sh")


def start(
    runner: Runner, pod: Pod, node: Node, job: str, to: str, command: list[str], port: int
) -> None:
    """Starts a job on all workers; it needs no connection from then on.

    Raises:
      PodError: a worker failed every time; the job is stopped again on the others.
      ValueError: no command.
    """
    if not command:
        raise ValueError("no command to run: put it behind --")
    count = len(node.addresses)
    token = secrets.token_hex(8) if not runner.dry_run else "TOKEN"
    words = [f"--job={check_job(job)}", f"--token={token}"]

    def line(worker: int) -> str:
        several = [f"--processes={count}", f"--process={worker}"]
        several += [f"--coordinator={node.addresses[0]}:{port}"]
        # The folder is quoted already, behind the equals sign as well.
        head = f"{WORKER} start {shlex.join(words)} --dir={remote_dir(to)}"
        return f"{head} {shlex.join([*(several if count > 1 else []), '--', *command])}"

    done = runner.each(range(count), lambda w: pod.ssh(w, line(w)), "starting", show=True)
    failed = [worker for worker, result in done.items() if result.code]
    if failed and len(failed) < count:
        # Only where it was started just now: a refusing worker may run an older one of that name.
        others = [worker for worker in done if worker not in failed]
        stop = f"{WORKER} stop --grace=5 {job}"
        runner.each(others, lambda w: pod.ssh(w, stop), "stopping", show=True)
    all_well(done, f"starting job {job}")


def statuses(runner: Runner, pod: Pod, node: Node, job: str = "") -> dict[int, Status | str]:
    """What each worker says about a job.

    Args:
      runner: runs gcloud.
      pod: the TPU.
      node: its workers.
      job: a name; "": the one that was started last.

    Returns:
      By worker its status, or why there is none.
    """
    command = f"{WORKER} status {check_job(job) if job else ''}".strip()
    done = runner.each(
        range(len(node.addresses)),
        lambda worker: pod.ssh(worker, command),
        "status",
        quiet=True,
        timeout=120,
    )
    told: dict[int, Status | str] = {}
    for worker, result in done.items():
        lines = [line for line in result.out.splitlines() if line.startswith("job=")]
        told[worker] = result.reason if result.code or not lines else Status.parse(lines[-1])
    return told


def stop(runner: Runner, pod: Pod, workers: list[int], job: str, grace: float) -> None:
    """Ends a job's processes, and no others.

    Raises:
      PodError: a worker failed every time.
    """
    command = f"{WORKER} stop --grace={grace:.0f} {job}".strip()
    done = runner.each(workers, lambda w: pod.ssh(w, command), "stopping", show=True)
    all_well(done, "stopping the job")


def wait(runner: Runner, pod: Pod, node: Node, job: str, poll: float, grace: float) -> Outcome:
    """Waits until a job has ended on all workers, and shows the log of worker 0 meanwhile.

    Args:
      runner: runs gcloud.
      pod: the TPU.
      node: its workers.
      job: the job's name.
      poll: seconds between two looks.
      grace: once one worker has ended without success, the others get so many seconds.

    Returns:
      How it ended.
    """
    silent, ended_badly, progress = 0, 0.0, (0, -1)
    shown = _Log(runner)
    # A look that fails is repeated by the next one.
    looker = Runner(retries=0, parallel=runner.parallel)
    while True:
        told = statuses(looker, pod, node, job)
        known = {worker: said for worker, said in told.items() if isinstance(said, Status)}
        progress = max([progress, *(said.progress for said in known.values())])
        if 0 in known:
            shown.up_to(pod, job, known[0].bytes)
        if len(known) < len(told):
            gone = _gone(runner, pod, progress)
            if gone:
                return gone
            silent += 1
            if silent >= LOST_POLLS:
                worker = min(set(told) - set(known))
                why = f"worker {worker} gives no answer: {told[worker]}"
                return Outcome("failed", 1, why, progress)
        else:
            silent = 0
            running = [worker for worker, said in known.items() if said.state == "running"]
            bad = [w for w, said in known.items() if said.state != "running" and _code(said)]
            if not running:
                shown.end()
                return _gone(runner, pod, progress) or _outcome(known, progress)
            if bad:
                ended_badly = ended_badly or time.monotonic()
                if time.monotonic() - ended_badly > grace:
                    others = ", ".join(map(str, running))
                    runner.say(f"worker {bad[0]} has ended; stopping the job on worker {others}")
                    stop(runner, pod, running, job, grace=10)
                    continue
        time.sleep(poll)


def _outcome(known: dict[int, Status], progress: tuple[int, int]) -> Outcome:
    # What came first in time: a lost worker makes the others fail, and these make us stop the rest.
    order = ("lost", "interrupted", "exited", "stopped")
    bad = [(worker, said) for worker, said in sorted(known.items()) if _code(said)]
    if not bad:
        return Outcome("finished", 0, "finished on all workers", progress)
    worker, said = min(bad, key=lambda pair: (order.index(_end(pair[1])), pair[0]))
    kind = {"exited": "failed", "stopped": "stopped"}.get(_end(said), "interrupted")
    why = f"worker {worker}: exit status {said.code}"
    if said.state != "exited":
        why = f"worker {worker}: {said.state}" + ("" if said.code is None else f", {said.code}")
    return Outcome(kind, _code(said), why, progress)


def _end(said: Status) -> str:
    return "interrupted" if said.code == UNFINISHED and said.state == "exited" else said.state


def _code(said: Status) -> int:
    """0 for a success. A run that a signal ended in good order exits with 0, and is none."""
    if said.state == "exited":
        return said.code or 0
    return said.code or 143


def _gone(runner: Runner, pod: Pod, progress: tuple[int, int]) -> Outcome | None:
    state = describe(runner, pod).state
    if state == READY:
        return None
    return Outcome("preempted", 1, f"TPU {pod.name} is {state}", progress)


class _Log:
    """The log of worker 0, in whole lines, as it grows."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self._shown, self._rest = runner, 0, ""

    def end(self) -> None:
        if self._rest:
            self._runner.say(f"[worker 0] {self._rest}")

    def up_to(self, pod: Pod, job: str, size: int) -> None:
        if size <= self._shown:
            return
        done = self._runner.ask(pod.ssh(0, f"{WORKER} log --from={self._shown} --to={size} {job}"))
        if done.code:
            return  # the next look brings it
        self._shown = size
        *lines, self._rest = (self._rest + done.out).split("\n")
        for line in lines:
            self._runner.say(f"[worker 0] {line}")
