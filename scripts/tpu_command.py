"""tpu_command.sh's work: a TPU pod from creation to the end of a training run, through gcloud.

Without a sub-command it opens a menu. It acts only on the TPU that it is told and only on processes
that it started there, asks before it removes anything, and with --dry-run it prints the gcloud
command lines instead of running them (it still asks gcloud how the TPU is). See docs/tpu_pod.md.
Everything here is standard library, Python 3.10 or newer; the parts are in tpu_pod/.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from datetime import datetime
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 (a laptop's python3 may be older than the package's)
    sys.exit("tpu_command.sh needs Python 3.10 or newer: PYTHON=python3.12 ./tpu_command.sh ...")
sys.path.insert(0, str(Path(__file__).resolve().parent))
from tpu_pod import jobs, menu, nodes, resume  # noqa: E402
from tpu_pod.gcloud import Pod, PodError, Runner, all_well  # noqa: E402
from tpu_pod.options import parse  # noqa: E402


def main(argv: list[str]) -> int:
    """Runs one sub-command, or the menu.

    Returns:
      Exit status: 0; 1 for a TPU or worker that fails; 2 for a request that can't be understood;
      that of the job for `run --wait` and `train`.
    """
    if not argv or argv == ["menu"]:
        return menu.run(guarded)
    return guarded(argv)


def guarded(argv: list[str]) -> int:
    """Runs one sub-command; what goes wrong becomes a message."""
    try:
        return dispatch(argv)
    except ValueError as error:
        print(f"tpu: {error}", file=sys.stderr)
        return 2
    except PodError as error:
        print(f"tpu: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntpu: stopped looking; a job goes on (status, logs, kill)", file=sys.stderr)
        return 130


def dispatch(argv: list[str]) -> int:
    """Parses and runs one sub-command.

    Raises:
      ValueError: a flag or a name that is wrong.
      PodError: a TPU or a worker fails.
    """
    args = parse(argv)
    pod = menu.complete(args)
    runner = Runner(args.dry_run, args.retries, args.retry_wait, args.parallel)
    return COMMANDS[args.command](args, pod, runner)


def ssh(args: argparse.Namespace, pod: Pod, runner: Runner) -> int:
    if not args.rest:
        worker = args.worker or 0
        follow = f"{jobs.WORKER} log --follow --lines=100 {args.job}".strip()
        return runner.terminal(pod.shell(worker, follow if args.attach else ""))
    # One word is a command line as it is, several are words: as with ssh and sh -c.
    command = args.rest[0] if len(args.rest) == 1 else shlex.join(args.rest)
    workers = _workers(args, runner, pod)
    done = runner.each(
        workers, lambda w: pod.ssh(w, command), "the command", show=True, again=False
    )
    all_well(done, "the command")
    return 0


def sync(args: argparse.Namespace, pod: Pod, runner: Runner) -> int:
    node = nodes.workers_of(runner, pod)
    jobs.sync(runner, pod, node, Path(args.dir), args.remote_dir, args.max_mb)
    return 0


def prepare(args: argparse.Namespace, pod: Pod, runner: Runner) -> int:
    node = nodes.workers_of(runner, pod)
    jobs.prepare(runner, pod, node, args.remote_dir, args.rest or ["DEVICE=tpu"])
    return 0


def run(args: argparse.Namespace, pod: Pod, runner: Runner) -> int:
    job = args.job or f"job-{datetime.now():%Y%m%d-%H%M%S}"
    node = nodes.workers_of(runner, pod)
    jobs.start(runner, pod, node, job, args.remote_dir, args.rest, args.port)
    if not args.wait or args.dry_run:
        runner.say(f"job {job}: status, logs --follow, kill; it goes on without this connection")
        return 0
    outcome = jobs.wait(runner, pod, node, job, args.poll, args.grace)
    runner.say(f"job {job}: {outcome.kind}: {outcome.why}")
    return outcome.code


def status(args: argparse.Namespace, pod: Pod, runner: Runner) -> int:
    node = nodes.describe(runner, pod)
    runner.say(f"TPU {pod.name}: {node.state} {node.accelerator}".rstrip())
    if node.state != nodes.READY:
        return 1
    told = jobs.statuses(runner, pod, node, args.job)
    runner.say(f"{'worker':7} {'job':28} {'state':12} {'exit':>4} {'step':>8}  log grew")
    for worker, said in told.items():
        if isinstance(said, str):
            runner.say(f"{worker:<7} {said}")
            continue
        code = "-" if said.code is None else said.code
        step = "-" if said.progress[1] < 0 else said.progress[1]
        runner.say(
            f"{worker:<7} {said.job:28} {said.state:12} {code:>4} {step:>8}  {said.age} s ago"
        )
    return 0 if all(isinstance(said, jobs.Status) for said in told.values()) else 1


def logs(args: argparse.Namespace, pod: Pod, runner: Runner) -> int:
    lines = "+1" if args.lines == 0 else args.lines
    follow = " --follow" if args.follow else ""
    command = f"{jobs.WORKER} log --lines={lines}{follow} {args.job}".strip()
    workers = _workers(args, runner, pod)
    runner.parallel = max(runner.parallel, len(workers) if args.follow else 1)
    done = runner.each(
        workers,
        lambda worker: pod.ssh(worker, command),
        "reading the log",
        show=not args.out,
        timeout=1e9 if args.follow else 600,
    )
    all_well(done, "reading the log")
    if args.out and not args.dry_run:
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        for worker, result in done.items():
            (out / f"worker-{worker}.log").write_text(result.out)
        runner.say(f"{len(done)} logs in {args.out}")
    return 0


def check(args: argparse.Namespace, pod: Pod, runner: Runner) -> int:
    workers = _workers(args, runner, pod)
    done = runner.each(workers, lambda w: pod.ssh(w, f"{jobs.WORKER} check"), "check", show=True)
    all_well(done, "check")
    return 0


def kill(args: argparse.Namespace, pod: Pod, runner: Runner) -> int:
    workers = _workers(args, runner, pod)
    which = f"job {args.job}" if args.job else "the job that was started last"
    if not menu.agreed(args, f"end {which} on {len(workers)} workers of {pod.name}"):
        return 1
    jobs.stop(runner, pod, workers, jobs.check_job(args.job) if args.job else "", args.grace)
    return 0


def clear_logs(args: argparse.Namespace, pod: Pod, runner: Runner) -> int:
    workers = _workers(args, runner, pod)
    if not menu.agreed(args, f"remove libtpu's logs on {len(workers)} workers of {pod.name}"):
        return 1
    done = runner.each(
        workers, lambda w: pod.ssh(w, f"{jobs.WORKER} clear-logs"), "clearing", show=True
    )
    all_well(done, "clearing TPU logs")
    return 0


def create(args: argparse.Namespace, pod: Pod, runner: Runner) -> int:
    request = _request(args)
    if nodes.queue_state(runner, pod) != nodes.ABSENT:
        raise ValueError(f"there is a queued resource {pod.name} already: train makes it anew")
    nodes.create(runner, pod, request)
    if args.wait and not args.dry_run:
        node = nodes.ensure(runner, pod, None, args.poll)
        runner.say(f"TPU {pod.name} is {node.state}, {len(node.addresses)} workers")
    return 0


def train(args: argparse.Namespace, pod: Pod, runner: Runner) -> int:
    if not args.rest:
        raise ValueError("no command to run: put it behind --")
    request = _request(args) if args.accelerator_type or args.runtime_version else None
    if args.resume_forever and request is None:
        raise ValueError(
            "--resume-forever needs --accelerator-type and --runtime-version: after a preemption "
            f"{pod.name} is made anew"
        )
    plan = resume.Training(
        command=args.rest,
        root=Path(args.dir),
        remote_dir=args.remote_dir,
        max_mb=args.max_mb,
        settings=None if args.no_prepare else (args.setup or ["DEVICE=tpu"]),
        job=jobs.check_job(args.job or "train"),
        request=request,
        forever=args.resume_forever,
        tries=args.give_up_after,
        poll=args.poll,
        grace=args.grace,
        port=args.port,
    )
    if args.resume_forever:
        what = f"delete {pod.name}, and make it anew, whenever it is preempted"
        if not menu.agreed(args, what):
            return 1
    return resume.train(runner, pod, plan)


def _request(args: argparse.Namespace) -> nodes.Request:
    for flag in ("accelerator_type", "runtime_version"):
        if not getattr(args, flag):
            raise ValueError(f"--{flag.replace('_', '-')} is not given: gcloud needs it")
    wrong = [flag for flag in args.create_flag if not flag.startswith("--")]
    if wrong:
        raise ValueError(f"--create-flag = {wrong[0]!r} must be a flag, as in --create-flag=--x=y")
    return nodes.Request(
        args.accelerator_type, args.runtime_version, args.spot, tuple(args.create_flag)
    )


def _workers(args: argparse.Namespace, runner: Runner, pod: Pod) -> list[int]:
    count = len(nodes.workers_of(runner, pod).addresses)
    if args.worker is None:
        return list(range(count))
    if not 0 <= args.worker < count:
        raise ValueError(f"--worker = {args.worker}: {pod.name} has workers 0 to {count - 1}")
    return [args.worker]


COMMANDS = {
    "ssh": ssh,
    "sync": sync,
    "prepare": prepare,
    "run": run,
    "status": status,
    "logs": logs,
    "check": check,
    "kill": kill,
    "clear-logs": clear_logs,
    "create": create,
    "train": train,
}

if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main(sys.argv[1:]))
