"""Questions: the menu, which project, zone and TPU, and whether to remove something."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable

from .gcloud import Pod, PodError, Runner, parse_json

# (what it says, sub-command, what it asks for, flags behind --)
ENTRIES = (
    ("ssh", "ssh", (("--worker", "worker", "0"),), None),
    ("sync dir", "sync", (("--dir", "local folder", "."),), None),
    ("prepare env", "prepare", (), ("setup.sh arguments", "DEVICE=tpu")),
    ("run", "run", (), ("command", "")),
    ("status", "status", (), None),
    ("logs", "logs", (("--lines", "last lines of each worker", "50"),), None),
    ("check", "check", (), None),
    ("kill job", "kill", (("--job", "job, empty for the last one", ""),), None),
    ("clear TPU logs", "clear-logs", (), None),
    ("exit", "", (), None),
)


def run(call: Callable[[list[str]], int]) -> int:
    """The menu, until exit or the end of the input.

    Args:
      call: runs one sub-command, given its arguments.

    Returns:
      Exit status of what ran last.
    """
    code, chosen = 0, {}
    while True:
        print()
        for number, (title, *_) in enumerate(ENTRIES, 1):
            print(f"{number:3}  {title}")
        answer = _read("choose: ")
        if answer is None or answer in (str(len(ENTRIES)), "exit", "q"):
            return code
        entries = {str(number): entry for number, entry in enumerate(ENTRIES, 1)}
        entries |= {entry[0]: entry for entry in ENTRIES}
        if answer not in entries:
            print(f"{answer!r} is none of 1 to {len(ENTRIES)}")
            continue
        _, command, questions, behind = entries[answer]
        try:
            if not chosen:
                pod = choose("", "", "")
                chosen = {"--tpu": pod.name, "--zone": pod.zone, "--project": pod.project}
            argv = [command, *(f"{flag}={value}" for flag, value in chosen.items())]
            for flag, text, default in questions:
                argv.append(f"{flag}={_ask(text, default)}")
            if behind:
                argv += ["--", *shlex.split(_ask(*behind))]
        except (ValueError, PodError) as error:
            print(f"tpu: {error}", file=sys.stderr)
            code = 2
            continue
        code = call(argv)


def complete(args: argparse.Namespace) -> Pod:
    """The TPU that the flags name; on a terminal, what is missing is asked for.

    Raises:
      ValueError: a name is missing, or is none.
    """
    missing = [flag for flag in ("tpu", "zone", "project") if not getattr(args, flag)]
    if missing and not sys.stdin.isatty():
        raise ValueError(f"--{missing[0]} is not given, and there is no terminal to ask on")
    pod = choose(args.project, args.zone, args.tpu)
    return Pod(pod.name, pod.zone, pod.project, args.internal_ip)


def choose(project: str, zone: str, name: str) -> Pod:
    """Picks from gcloud's lists what is not given.

    Raises:
      ValueError: nothing is picked, or a name is none.
      PodError: gcloud gives no list.
    """
    runner, env = Runner(), os.environ
    project, zone = project or env.get("PROJECT_ID", ""), zone or env.get("ZONE", "")
    name = name or env.get("TPU_NAME", "")
    if not project:
        configured = runner.ask(["gcloud", "config", "get", "project"])
        project = _ask("project", configured.out.strip() if configured.code == 0 else "")
    if not zone:
        command = ["gcloud", "compute", "tpus", "locations", "list", f"--project={project}"]
        told = parse_json(runner.ask([*command, "--format=json"]), "zones")
        zone = _pick("zone", sorted(place["locationId"] for place in told))
    if not name:
        place = [f"--zone={zone}", f"--project={project}", "--format=json"]
        told = parse_json(
            runner.ask(["gcloud", "compute", "tpus", "tpu-vm", "list", *place]), "TPUs"
        )
        found = {node["name"].rsplit("/", 1)[-1]: node.get("state", "") for node in told}
        if not found:
            raise ValueError(f"there is no TPU in {zone} of {project}: see create")
        name = _pick("TPU", sorted(found), found)
    return Pod(name, zone, project)


def agreed(args: argparse.Namespace, what: str) -> bool:
    """Asks before something that can't be undone; --yes and --dry-run answer."""
    if args.yes or args.dry_run:
        return True
    answer = _read(f"{what}? [y/N] ")
    if answer is None:
        print("tpu: nobody to ask: pass --yes", file=sys.stderr)
        return False
    if answer.lower() not in ("y", "yes"):
        print("nothing done")
        return False
    return True


def _pick(what: str, names: list[str], notes: dict[str, str] | None = None) -> str:
    for number, name in enumerate(names, 1):
        print(f"{number:3}  {name}  {(notes or {}).get(name, '')}".rstrip())
    answer = _ask(f"{what}, by number or name", "")
    if answer.isdecimal() and 1 <= int(answer) <= len(names):
        return names[int(answer) - 1]
    if answer not in names:
        raise ValueError(f"{answer!r} is no {what} of the list")
    return answer


def _ask(text: str, default: str) -> str:
    answer = _read(f"{text} [{default}]: " if default else f"{text}: ")
    return answer or default


def _read(prompt: str) -> str | None:
    try:
        return input(prompt).strip()
    except EOFError:
        print()
        return None
