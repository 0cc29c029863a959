"""Before the first step: do all processes of a run have the same code, packages and configuration?

Processes that differ train something that nobody asked for, or wait for each other for ever. Each
process tells the first what it has; the first compares, and all of them train or none does.

The processes speak through the key-value store of jax's coordinator, which works before any device
is touched: a collective would be compiled by the very packages that are in doubt.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ..config_values import flatten

PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "flax", "optax", "orbax-checkpoint")
PACKAGES += ("grain", "numpy", "array_record")
TIMEOUT_SECONDS = 120
NOTHING = "nothing"
_PACKAGE = Path(__file__).resolve().parent.parent
_SHOWN_FIELDS, _SHOWN_HOSTS = 10, 8

Facts = Mapping[str, str]


def require_agreement(config: Mapping[str, Any], workdir: str) -> str:
    """Compares all processes of a run, and gives the run an identity that they share.

    Args:
      config: the configuration as it was read; every field must be the same everywhere.
      workdir: folder or URL of the run.

    Returns:
      An identity of this start of the run, the same in all processes.

    Raises:
      ValueError: the processes differ, or one doesn't answer; all processes raise the same message,
        which names the odd ones, what they have and what the others have.
    """
    run = uuid.uuid4().hex[:12]
    # In two rounds: where packages differ, asking for the devices may hang or fail.
    for name, facts in {"code": code_facts, "devices": device_facts}.items():
        mine = facts() | (config_facts(config, workdir) if name == "code" else {})
        verdict = _ask_all(name, mine, run)
        if verdict["differences"]:
            raise ValueError(verdict["differences"])
        run = verdict["run"]
    return run


def code_facts() -> dict[str, str]:
    """Host, Python, package versions and a hash of this package's source files."""
    facts = {"host": socket.gethostname(), "source code": source_hash(_PACKAGE)}
    facts["Python"] = platform.python_version()
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = NOTHING
    return facts


def config_facts(config: Mapping[str, Any], workdir: str) -> dict[str, str]:
    """Every field of a configuration by its dotted name: a hash would not say which one differs."""
    return {"--workdir": workdir, **flatten(config, "config")}


def device_facts() -> dict[str, str]:
    """Host, kind and number of the devices of this process."""
    devices = jax.local_devices()
    kinds = sorted({device.device_kind for device in devices})
    facts = {"host": socket.gethostname(), "device kind": ", ".join(kinds)}
    return {**facts, "local devices": str(len(devices))}


def source_hash(folder: Path) -> str:
    """A hash over names and content of the Python files below a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return found.hexdigest()[:16]


def differences(facts: Sequence[Facts | None]) -> str:
    """What differs between processes, as a message; "" where nothing does.

    Args:
      facts: of each process what it has, with its `host`; None for one that did not answer.

    Returns:
      A line per field: which hosts have what; those in the minority are called odd, and where there
      is no majority all groups are named.
    """
    silent = [process for process, found in enumerate(facts) if found is None]
    if silent:
        listed = ", ".join(map(str, silent))
        return f"no answer from process {listed} of {len(facts)}: see the log of its host"
    told = [found for found in facts if found is not None]
    fields = dict.fromkeys(field for found in told for field in found if field != "host")
    lines = []
    for field in fields:
        groups: dict[str, list[int]] = {}
        for process, found in enumerate(told):
            groups.setdefault(found.get(field, NOTHING), []).append(process)
        if len(groups) > 1:
            lines.append(f"  {field}: {_opposed(groups, told)}")
    if not lines:
        return ""
    if len(lines) > _SHOWN_FIELDS:
        lines[_SHOWN_FIELDS:] = [f"  (+{len(lines) - _SHOWN_FIELDS} more fields)"]
    remedy = "Sync the code, install the same packages (setup.sh) and start all with one command"
    return "\n".join(["the processes of this run differ, so none of them trains:", *lines, remedy])


def _opposed(groups: Mapping[str, list[int]], facts: Sequence[Facts]) -> str:
    ranked = sorted(groups.items(), key=lambda group: -len(group[1]))
    most = len(ranked[0][1])
    if most == len(ranked[1][1]):
        each = (f"{_hosts(processes, facts)}: {value}" for value, processes in ranked)
        return f"no majority; {'; '.join(each)}"
    odd = (f"odd is {_hosts(processes, facts)}: {value}" for value, processes in ranked[1:])
    return f"{'; '.join(odd)}; {most} of {len(facts)} processes have {ranked[0][0]}"


def _hosts(processes: Sequence[int], facts: Sequence[Facts]) -> str:
    hosts: dict[str, list[int]] = {}
    for process in processes:
        hosts.setdefault(facts[process]["host"], []).append(process)
    names = [f"host {host} (process {', '.join(map(str, of))})" for host, of in hosts.items()]
    more = len(names) - _SHOWN_HOSTS
    return ", ".join(names[:_SHOWN_HOSTS]) + (f" and {more} more" if more > 0 else "")


def _ask_all(name: str, mine: Facts, run: str) -> dict[str, str]:
    """Process 0's verdict on what all have told: the message of `differences`, and its `run`."""
    if not jax.distributed.is_initialized():
        return {"run": run, "differences": ""}
    # jax has no public name for the store; Orbax reaches it in the same way.
    from jax._src.distributed import global_state

    client, here, count = global_state.client, global_state.process_id, global_state.num_processes
    assert client is not None
    folder = f"codecvit/agreement/{name}"
    client.key_value_set(f"{folder}/{here}", json.dumps(mine))
    if here == 0:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        told = [_wait(client, f"{folder}/{process}", deadline) for process in range(count)]
        found = differences([None if one is None else json.loads(one) for one in told])
        client.key_value_set(f"{folder}/verdict", json.dumps({"run": run, "differences": found}))
    # The first waits for the slowest before it answers.
    answer = _wait(client, f"{folder}/verdict", time.monotonic() + 2 * TIMEOUT_SECONDS)
    if answer is None:
        raise ValueError("no answer from process 0: see the log of its host")
    return json.loads(answer)


def _wait(client: Any, key: str, deadline: float) -> str | None:
    """A value of the store, None if it isn't there in time."""
    left = max(deadline - time.monotonic(), 0.1)
    try:
        return client.blocking_key_value_get(key, int(left * 1000))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        return None
