"""The sub-commands of tpu_command.sh and their flags."""

from __future__ import annotations

import argparse
import os

from .jobs import COORDINATOR_PORT

# name -> (line of help, groups of flags)
SUBCOMMANDS = {
    "ssh": ("a shell on one worker, a job's log (--attach), or -- COMMAND", "worker job attach"),
    "sync": ("make the tree on each worker equal to --dir", "tree"),
    "prepare": ("run setup.sh on each worker; -- DEVICE=tpu ... are its arguments", "remote"),
    "run": ("start -- COMMAND on every worker", "remote job port wait look"),
    "status": ("the job on every worker: state, step, age of its log", "job"),
    "logs": ("the job's log from every worker", "worker job logs"),
    "check": ("disk, Python, jobs and holders of the accelerators", "worker"),
    "kill": ("end a job's processes, and no others", "worker job grace yes"),
    "clear-logs": ("remove libtpu's logs", "worker yes"),
    "create": ("ask for the TPU", "create wait poll"),
    "train": ("create, sync, prepare, run; resume", "tree job port create look train yes"),
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong as a ValueError, so that the menu goes on."""

    def error(self, message: str) -> None:
        raise ValueError(f"{message} (see {self.prog} --help)")


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags of one sub-command; words behind -- become `rest`.

    Raises:
      ValueError: an unknown sub-command or flag.
    """
    argv, rest = (
        (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    )
    parser = Parser(
        prog="tpu_command.sh",
        allow_abbrev=False,
        description="A TPU pod through gcloud: docs/tpu_pod.md. Without arguments: a menu.",
    )
    several = parser.add_subparsers(dest="command", required=True, metavar="SUB-COMMAND")
    for name, (words, groups) in SUBCOMMANDS.items():
        sub = several.add_parser(name, help=words, description=words, allow_abbrev=False)
        _common(sub)
        for group in groups.split():
            GROUPS[group](sub)
    args = parser.parse_args(argv)
    if rest and args.command not in ("ssh", "prepare", "run", "train"):
        raise ValueError(f"{args.command} takes no command behind --")
    args.rest = rest
    # What code shared by several sub-commands looks for.
    for name, value in {"job": "", "worker": None, "yes": False}.items():
        if not hasattr(args, name):
            setattr(args, name, value)
    return args


def _common(sub: argparse.ArgumentParser) -> None:
    env = os.environ
    sub.add_argument("--tpu", default=env.get("TPU_NAME", ""), help="its name ($TPU_NAME)")
    sub.add_argument("--zone", default=env.get("ZONE", ""), help="($ZONE)")
    sub.add_argument("--project", default=env.get("PROJECT_ID", ""), help="($PROJECT_ID)")
    sub.add_argument(
        "--internal-ip", action="store_true", help="reach workers inside their network"
    )
    sub.add_argument("--dry-run", action="store_true", help="print the gcloud command lines only")
    sub.add_argument("--retries", type=int, default=2, help="for a worker that fails")
    sub.add_argument("--retry-wait", type=float, default=5.0, help="seconds before that")
    sub.add_argument("--parallel", type=int, default=16, help="workers at a time")


def _remote(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--remote-dir", default="codecvit", help="below the home folder, or absolute")


def _tree(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--dir", default=".", help="the local tree")
    sub.add_argument("--max-mb", type=float, default=200.0, help="refuse to copy more than that")
    _remote(sub)


def _look(sub: argparse.ArgumentParser) -> None:
    _poll(sub)
    _grace(sub)


def _poll(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--poll", type=float, default=20.0, help="seconds between two looks")


def _grace(sub: argparse.ArgumentParser) -> None:
    text = "seconds that processes get to end by themselves"
    sub.add_argument("--grace", type=float, default=90.0, help=text)


def _logs(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--lines", type=int, default=50, help="the last so many; 0: all")
    sub.add_argument("--follow", action="store_true", help="go on until the job ends")
    sub.add_argument("--out", help="write worker-N.log files into this folder instead")


def _create(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--accelerator-type", default="", help="for example v5litepod-16")
    sub.add_argument("--runtime-version", default="", help="for example v2-alpha-tpuv5-lite")
    sub.add_argument("--spot", action="store_true", help="cheaper; may be preempted at any time")
    text = "one more flag for gcloud's create, as --create-flag=--network=NAME; may be repeated"
    sub.add_argument("--create-flag", action="append", default=[], help=text)


def _train(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--resume-forever", action="store_true", help="start again until it succeeds")
    text = "ends in a row that are no preemption and bring no progress"
    sub.add_argument("--give-up-after", type=int, default=3, help=text)
    sub.add_argument("--no-prepare", action="store_true", help="the environment is there already")
    text = "an argument of setup.sh instead of DEVICE=tpu; may be repeated"
    sub.add_argument("--setup", action="append", default=[], help=text)


GROUPS = {
    "worker": lambda sub: sub.add_argument("--worker", type=int, help="only this one"),
    "job": lambda sub: sub.add_argument("--job", default="", help="default: the last (run: a new)"),
    "attach": lambda sub: sub.add_argument("--attach", action="store_true", help="watch the job"),
    "wait": lambda sub: sub.add_argument("--wait", action="store_true", help="until it is done"),
    "yes": lambda sub: sub.add_argument("--yes", action="store_true", help="don't ask"),
    "port": lambda sub: sub.add_argument(
        "--port", type=int, default=COORDINATOR_PORT, help="of jax's coordinator, on worker 0"
    ),
    "tree": _tree,
    "remote": _remote,
    "look": _look,
    "poll": _poll,
    "grace": _grace,
    "logs": _logs,
    "create": _create,
    "train": _train,
}
