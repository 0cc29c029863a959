"""Stands in for gcloud: TPUs are folders, workers are local processes with a home of their own.

Refuses every sub-command and flag that is not in gcloud_flags.json, which was taken from the real
tool. What it knows is in $GCLOUD_STAND_IN/state.json; each call is added to calls.jsonl there.
Like the real one, `ssh` splits --command at blanks, and the other side joins the words again and
hands them to a shell, in the home folder, with that machine's environment and not the caller's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

TABLE = json.loads((Path(__file__).parent / "gcloud_flags.json").read_text())


class Refused(Exception):
    """What the real tool would say, and its exit status."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


def check(argv: list[str]) -> tuple[str, list[str], dict[str, str], list[str]]:
    """Splits a command line as gcloud does.

    Returns:
      Sub-command, names, flags, and the words behind --.

    Raises:
      Refused: a sub-command or a flag that gcloud does not have, or a flag without its value.
    """
    argv, behind = (
        (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    )
    command = next((c for c in TABLE["commands"] if argv[: len(c.split())] == c.split()), None)
    if command is None:
        raise Refused(f"ERROR: (gcloud) Invalid choice: {argv[:4]}", 2)
    known = TABLE["global_flags"] | TABLE["commands"][command]
    names, flags, rest = [], {}, argv[len(command.split()) :]
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            names.append(word)
            continue
        flag, equals, value = word.partition("=")
        if flag not in known:
            raise Refused(f"ERROR: (gcloud.{command}) unrecognized arguments: {word}", 2)
        if known[flag] == "value" and not equals:
            if not rest or rest[0].startswith("-"):
                raise Refused(
                    f"ERROR: (gcloud.{command}) argument {flag}: expected one argument", 2
                )
            value = rest.pop(0)
        flags[flag] = value
    if behind and not command.endswith(" ssh"):
        raise Refused(f"ERROR: (gcloud.{command}) unrecognized arguments: {behind}", 2)
    return command, names, flags, behind


@contextlib.contextmanager
def state(folder: Path) -> Iterator[dict]:
    """What is known, while nobody else changes it."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / "state.json"
        known = json.loads(path.read_text())
        before = json.dumps(known)
        try:
            yield known
        finally:
            if json.dumps(known) != before:
                path.write_text(json.dumps(known))


def processes(home: Path) -> list[int]:
    """Those of one worker."""
    mark, found = f"STAND_IN_WORKER={home}".encode(), []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def home_of(folder: Path, name: str, worker: int) -> Path:
    return folder / "workers" / name / str(worker)


def not_found(command: str, kind: str, name: str) -> Refused:
    return Refused(
        f"ERROR: (gcloud.{command.replace(' ', '.')}) NOT_FOUND: Resource "
        f"'projects/p/locations/z/{kind}/{name}' was not found.\n"
        f"- '@type': type.googleapis.com/google.rpc.ResourceInfo\n  resourceName: {name}"
    )


def make_node(known: dict, folder: Path, name: str, flags: dict[str, str]) -> None:
    known["nodes"][name] = {
        "state": "READY",
        "zone": flags["--zone"],
        "project": flags["--project"],
        "accelerator": flags["--accelerator-type"],
        "workers": known["workers"],
    }
    for worker in range(known["workers"]):
        home = home_of(folder, name, worker)
        (home / "tpu_logs").mkdir(parents=True)


def main(argv: list[str]) -> int:
    folder = Path(os.environ["GCLOUD_STAND_IN"])
    with (folder / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(argv) + "\n")
    try:
        command, names, flags, behind = check(argv)
        if command == "config get":
            print("configured-project")
            return 0
        if "--project" not in flags:
            raise Refused("the stand-in has no default project: --project is missing")
        if "--zone" not in flags and "locations" not in command:
            raise Refused("the stand-in has no default zone: --zone is missing")
        group, verb = command.split()[-2:]
        if group == "queued-resources":
            return queued(folder, command, verb, names[0], flags)
        if verb in ("ssh", "scp"):
            return connect(folder, command, verb, names, flags, behind)
        return nodes(folder, command, verb, names, flags)
    except Refused as refused:
        print(refused, file=sys.stderr)
        return refused.code


def nodes(folder: Path, command: str, verb: str, names: list[str], flags: dict[str, str]) -> int:
    with state(folder) as known:
        here = {
            name: node
            for name, node in known["nodes"].items()
            if (node["zone"], node["project"]) == (flags.get("--zone"), flags["--project"])
        }
        if "locations" in command:
            print(json.dumps([{"locationId": zone} for zone in known["zones"]]))
        elif verb == "list":
            print(json.dumps([{"name": f"p/z/{n}", "state": v["state"]} for n, v in here.items()]))
        elif names[0] not in here:
            raise not_found(command, "nodes", names[0])
        elif verb == "describe":
            node = here[names[0]]
            ends = [{"ipAddress": "127.0.0.1", "port": 8470}] * node["workers"]
            told = {"state": node["state"], "acceleratorType": node["accelerator"]}
            print(json.dumps(told | {"networkEndpoints": ends, "networkConfigs": [{}]}))
        else:
            remove(known, folder, names[0])
    return 0


def remove(known: dict, folder: Path, name: str) -> None:
    for worker in range(known["nodes"].pop(name)["workers"]):
        for pid in processes(home_of(folder, name, worker)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    import shutil  # these processes are many and short: only who needs it loads it

    shutil.rmtree(folder / "workers" / name)


def queued(folder: Path, command: str, verb: str, name: str, flags: dict[str, str]) -> int:
    with state(folder) as known:
        if verb == "create":
            if name in known["queued"]:
                raise Refused(f"ERROR: ALREADY_EXISTS: {name}")
            for flag in ("--node-id", "--accelerator-type", "--runtime-version"):
                if flag not in flags:
                    raise Refused(f"ERROR: argument {flag}: Must be specified.", 2)
            known["queued"][name] = {"state": "WAITING_FOR_RESOURCES", "flags": flags}
            return 0
        if name not in known["queued"]:
            raise not_found(command, "queuedResources", name)
        entry = known["queued"][name]
        node = entry["flags"]["--node-id"]
        if verb == "describe":
            told = {"state": {"state": entry["state"]}, "tpu": {"nodeSpec": [{"nodeId": node}]}}
            print(json.dumps(told))
            if entry["state"] == "WAITING_FOR_RESOURCES":  # ready at the next look
                entry["state"] = "ACTIVE"
                make_node(known, folder, node, entry["flags"])
        else:
            if node in known["nodes"]:
                if "--force" not in flags:
                    raise Refused("ERROR: FAILED_PRECONDITION: it has nodes")
                remove(known, folder, node)
            del known["queued"][name]
    return 0


def connect(
    folder: Path,
    command: str,
    verb: str,
    names: list[str],
    flags: dict[str, str],
    behind: list[str],
) -> int:
    name = (names[-1] if verb == "scp" else names[0]).partition(":")[0]
    worker = flags.get("--worker", "0")
    with state(folder) as known:
        node = known["nodes"].get(name)
        if node is None or (node["zone"], node["project"]) != (flags["--zone"], flags["--project"]):
            raise not_found(command, "nodes", name)
        if node["state"] != "READY":
            raise Refused(f'ERROR: This TPU has terminal state "{node["state"]}".')
        if not worker.isdecimal() or int(worker) >= node["workers"]:
            raise Refused(f"ERROR: worker index {worker} is larger than the valid indexes")
        for failure in known["failures"]:
            if failure["verb"] == verb and failure["worker"] == int(worker) and failure["times"]:
                failure["times"] -= 1
                raise Refused("ERROR: [/usr/bin/ssh] exited with return code [255].", 255)
        env, cut = known["env"], known["cut"]
    home = home_of(folder, name, int(worker))
    if verb == "scp":
        for source in names[:-1]:
            content = Path(source).read_bytes()
            with state(folder) as known:
                if cut:
                    known["cut"], content = cut - 1, content[: len(content) // 2]
            (home / names[-1].partition(":")[2] / Path(source).name).write_bytes(content)
        return 0
    env = {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "STAND_IN_WORKER": str(home),
        "TPU_LOG_DIR": str(home / "tpu_logs"),
        "ACCELERATORS": str(home / "accel*"),
        **env,
    }
    words = flags["--command"].split(" ") if "--command" in flags else behind
    shell = ["bash", "-c", " ".join(words)] if words else ["bash"]
    print("SSH: Attempting to connect to worker", worker, file=sys.stderr)
    sys.stderr.flush()
    os.chdir(home)
    return os.execvpe("bash", shell, env)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
