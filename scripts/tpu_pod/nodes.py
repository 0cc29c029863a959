"""The TPU itself: what it is doing, making it, waiting for it, removing it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .gcloud import Pod, PodError, Result, Runner, parse_json

READY = "READY"
ABSENT = "ABSENT"
# States of a node after which only a new one helps, and those that pass by themselves.
GONE = ("PREEMPTED", "TERMINATED")
PASSING = ("CREATING", "STARTING", "RESTARTING", "REIMAGING", "REPAIRING", "DELETING", "STOPPING")
# The same of a queued resource.
QUEUE_GONE = ("FAILED", "SUSPENDED", "SUSPENDING")
QUEUE_TRIES = 5  # so many FAILED requests in a row, and it is the request's fault
QUEUE_PASSING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "DELETING")


@dataclass(frozen=True)
class Node:
    """A TPU as gcloud describes it.

    Args:
      state: READY, PREEMPTED, ...; ABSENT where there is none.
      addresses: of its workers, on their own network, by number.
      accelerator: for example v4-32.
    """

    state: str
    addresses: tuple[str, ...] = ()
    accelerator: str = ""


@dataclass(frozen=True)
class Request:
    """What to create.

    Args:
      accelerator: type, for example v5litepod-16.
      version: of the runtime, for example tpu-ubuntu2204-base.
      spot: cheaper, and taken away when others need it.
      flags: further ones for `gcloud compute tpus queued-resources create`.
    """

    accelerator: str
    version: str
    spot: bool = False
    flags: tuple[str, ...] = ()

    def command(self, pod: Pod) -> list[str]:
        return pod.queued(
            "create",
            f"--node-id={pod.name}",
            f"--accelerator-type={self.accelerator}",
            f"--runtime-version={self.version}",
            *(["--spot"] if self.spot else []),
            "--quiet",
            *self.flags,
        )


def describe(runner: Runner, pod: Pod) -> Node:
    """Asks gcloud about the TPU."""
    result = runner.ask(pod.node("describe", "--format=json"))
    if _not_found(result):
        return Node(ABSENT)
    told = parse_json(result, f"TPU {pod.name}")
    # With several network interfaces a worker has several endpoints, one after the other.
    step = max(1, len(told.get("networkConfigs") or []))
    endpoints = (told.get("networkEndpoints") or [])[::step]
    addresses = tuple(endpoint.get("ipAddress", "") for endpoint in endpoints)
    return Node(told.get("state", "UNKNOWN"), addresses, told.get("acceleratorType", ""))


def workers_of(runner: Runner, pod: Pod) -> Node:
    """The TPU, ready to be used.

    Raises:
      PodError: there is none, or it is not ready.
    """
    node = describe(runner, pod)
    if node.state == ABSENT:
        raise PodError(f"there is no TPU {pod.name} in {pod.zone} of {pod.project}")
    if node.state != READY:
        raise PodError(f"TPU {pod.name} is {node.state}, not READY")
    if not node.addresses:
        raise PodError(f"gcloud names no workers of TPU {pod.name}")
    return node


def queue_state(runner: Runner, pod: Pod) -> str:
    """The state of the queued resource that has the TPU's name.

    Raises:
      PodError: its node has another name, so it is not ours to act on.
    """
    result = runner.ask(pod.queued("describe", "--format=json"))
    if _not_found(result):
        return ABSENT
    told = parse_json(result, f"queued resource {pod.name}")
    nodes = [spec.get("nodeId") for spec in (told.get("tpu") or {}).get("nodeSpec") or []]
    if nodes and nodes != [pod.name]:
        raise PodError(
            f"queued resource {pod.name} holds {nodes}, not the TPU {pod.name}: left alone"
        )
    return (told.get("state") or {}).get("state", "UNKNOWN")


def create(runner: Runner, pod: Pod, request: Request) -> None:
    """Asks for the TPU; does not wait for it.

    Raises:
      PodError: refused.
    """
    result = runner.do(request.command(pod))
    if result.code:
        raise PodError(f"TPU {pod.name} could not be asked for: {result.reason}")


def delete(runner: Runner, pod: Pod, poll: float) -> None:
    """Removes the TPU and its queued resource, and waits until both are gone."""
    if queue_state(runner, pod) != ABSENT:
        result = runner.do(pod.queued("delete", "--force", "--quiet"))
    else:
        result = runner.do(pod.node("delete", "--quiet"))
    if result.code and not _not_found(result):
        raise PodError(f"TPU {pod.name} could not be deleted: {result.reason}")
    while not runner.dry_run:
        if describe(runner, pod).state == ABSENT and queue_state(runner, pod) == ABSENT:
            return
        time.sleep(poll)


def ensure(runner: Runner, pod: Pod, request: Request | None, poll: float) -> Node:
    """Waits for the TPU; makes it where there is none, and anew where it was taken away.

    Args:
      runner: runs gcloud.
      pod: the TPU.
      request: what to create; None: it must be there.
      poll: seconds between two looks.

    Returns:
      The TPU, ready. In a dry run, one worker of a TPU that is not there yet.

    Raises:
      PodError: it is in a state that does not pass and is not preemption, or there is none and
        nothing to create.
    """
    said, failures = "", 0
    while True:
        node = describe(runner, pod)
        if node.state == READY:
            return workers_of(runner, pod)
        queue = queue_state(runner, pod)
        if node.state in GONE or (queue in QUEUE_GONE and node.state == ABSENT):
            dead = node.state if node.state in GONE else f"{queue} (its queued resource)"
            if request is None:
                raise PodError(f"TPU {pod.name} is {dead}; --accelerator-type would make a new one")
            failures += queue == "FAILED"
            if failures > QUEUE_TRIES:
                raise PodError(
                    f"queued resource {pod.name} FAILED {QUEUE_TRIES} times; the reason: "
                    f"gcloud compute tpus queued-resources describe {pod.name} "
                    f"--zone={pod.zone} --project={pod.project}"
                )
            runner.say(f"TPU {pod.name} is {dead}: it is deleted and asked for again")
            delete(runner, pod, poll)
            create(runner, pod, request)
        elif node.state == ABSENT and queue == ABSENT:
            if request is None:
                raise PodError(
                    f"there is no TPU {pod.name} in {pod.zone} of {pod.project}; "
                    "--accelerator-type would make one"
                )
            runner.say(f"there is no TPU {pod.name}: it is asked for")
            create(runner, pod, request)
        elif node.state not in (*PASSING, ABSENT) or queue not in (
            *QUEUE_PASSING,
            *QUEUE_GONE,
            "ACTIVE",
            ABSENT,
        ):
            raise PodError(
                f"TPU {pod.name} is {node.state}, its queued resource {queue}: this does not pass "
                "by itself; see gcloud compute tpus tpu-vm describe"
            )
        elif (now := f"TPU {pod.name} is {node.state}, its queued resource {queue}") != said:
            runner.say(f"{now}: waiting")
            said = now
        if runner.dry_run:
            runner.say("(the lines of worker 0 stand for those of all workers)")
            return Node(READY, ("ADDRESS-OF-WORKER-0",))
        time.sleep(poll)


def _not_found(result: Result) -> bool:
    return result.code != 0 and "NOT_FOUND" in result.err
