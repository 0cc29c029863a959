"""gcloud's command lines, and running them: each worker by itself, with retries, failures named."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

# Exit statuses after which the same command would only fail again: wrong arguments, a refusal of
# worker.sh, no worker.sh there.
FINAL = (2, 3, 127)
# What gcloud says about every connection.
GCLOUD_CHATTER = ("Using ssh batch size", "Using scp batch size", "SSH: Attempting to connect")
NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
PROJECT = re.compile(r"([a-z0-9-]+(\.[a-z0-9-]+)*:)?[a-z0-9][a-z0-9-]*")


class PodError(Exception):
    """A worker or a TPU that does not do what it was asked."""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str = ""
    err: str = ""

    @property
    def reason(self) -> str:
        """The line that it said about its failure: gcloud's ERROR, else the last one."""
        lines = [line.strip() for line in (self.err or self.out).splitlines()]
        lines = [line for line in lines if line and not line.startswith(GCLOUD_CHATTER)]
        errors = [line for line in lines if line.startswith("ERROR")]
        return (errors or lines[-1:] or [f"exit status {self.code}"])[0]


@dataclass(frozen=True)
class Pod:
    """The one TPU that a call acts on.

    Args:
      name: of the node, and of the queued resource that brings it.
      zone: where it is.
      project: whose it is.
      internal_ip: reach the workers by their internal addresses.

    Raises:
      ValueError: a name that Google would not give, which a shell or gcloud might misread.
    """

    name: str
    zone: str
    project: str
    internal_ip: bool = False

    def __post_init__(self) -> None:
        for flag, value, pattern in (
            ("--tpu", self.name, NAME),
            ("--zone", self.zone, NAME),
            ("--project", self.project, PROJECT),
        ):
            if not pattern.fullmatch(value):
                raise ValueError(
                    f"{flag} = {value!r}: such a name is made of lower-case letters, digits and "
                    "dashes, and begins with a letter"
                )

    @property
    def place(self) -> list[str]:
        return [f"--zone={self.zone}", f"--project={self.project}"]

    def ssh(self, worker: int, command: str) -> list[str]:
        """gcloud's arguments that run a shell command line on one worker.

        One worker at a time: for several, gcloud insists on a key in ssh-agent and mixes outputs.
        """
        return [*self._to("ssh", self.name, worker), "--quiet", f"--command={command}"]

    def shell(self, worker: int, command: str = "") -> list[str]:
        """The same with a terminal: a shell, or a command to watch."""
        return [*self._to("ssh", self.name, worker), *(["--", command] if command else [])]

    def scp(self, worker: int, file: str) -> list[str]:
        """gcloud's arguments that copy a file of the working directory to a worker's home."""
        return [*self._to("scp", file, f"{self.name}:", worker), "--quiet"]

    def node(self, verb: str, *flags: str) -> list[str]:
        return ["gcloud", "compute", "tpus", "tpu-vm", verb, self.name, *self.place, *flags]

    def queued(self, verb: str, *flags: str) -> list[str]:
        start = ["gcloud", "compute", "tpus", "queued-resources", verb, self.name]
        return [*start, *self.place, *flags]

    def _to(self, verb: str, *words: str | int) -> list[str]:
        *names, worker = words
        start = ["gcloud", "compute", "tpus", "tpu-vm", verb, *map(str, names), *self.place]
        return [*start, f"--worker={worker}", *(["--internal-ip"] if self.internal_ip else [])]


@dataclass
class Runner:
    """Runs command lines, or prints them.

    Args:
      dry_run: print what would change anything; questions are asked all the same.
      retries: how often a worker that failed is tried again.
      wait: seconds before that.
      parallel: workers at a time.
    """

    dry_run: bool = False
    retries: int = 2
    wait: float = 5.0
    parallel: int = 16
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, text: str) -> None:
        with self._lock:
            print(text, flush=True)

    def ask(self, argv: list[str], timeout: float = 120) -> Result:
        """Runs a command that changes nothing and returns what it prints."""
        _need_gcloud()
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return Result(1, err=f"no answer within {timeout:g} s")
        return Result(done.returncode, _text(done.stdout), _text(done.stderr))

    def do(self, argv: list[str], timeout: float = 1800) -> Result:
        """Runs a command that changes something; prints it in a dry run."""
        self.say(f"$ {shlex.join(argv)}")
        return Result(0) if self.dry_run else self.ask(argv, timeout)

    def terminal(self, argv: list[str]) -> int:
        """Hands the terminal to a command."""
        if self.dry_run:
            self.say(f"$ {shlex.join(argv)}")
            return 0
        _need_gcloud()
        return subprocess.call(argv)

    def each(
        self,
        workers: Iterable[int],
        argv_of: Callable[[int], list[str]],
        what: str,
        cwd: Path | None = None,
        show: bool = False,
        quiet: bool = False,
        again: bool = True,
        timeout: float = 1800,
    ) -> dict[int, Result]:
        """Runs one command per worker, several at a time; a worker that fails is tried again.

        Args:
          workers: their numbers.
          argv_of: worker -> command line.
          what: for messages: "worker 1: WHAT failed".
          cwd: working directory.
          show: print output as it comes, a worker's name before each line.
          quiet: a dry run runs it too, for it changes nothing.
          again: whether to repeat what failed there; if not, only lost connections are repeated.
          timeout: seconds for one try.

        Returns:
          The result of each worker; failures stay in it, see `all_well`.
        """
        workers = list(workers)
        if self.dry_run and not quiet:
            for worker in workers:
                self.say(f"$ {shlex.join(argv_of(worker))}")
            return {worker: Result(0) for worker in workers}
        _need_gcloud()

        def one(worker: int) -> Result:
            result = Result(1)
            for attempt in range(1 + self.retries):
                if attempt:
                    self.say(f"[worker {worker}] {what} failed ({result.reason}); trying again")
                    time.sleep(self.wait)
                result = self._run(argv_of(worker), worker, cwd, show, timeout)
                if result.code == 0 or result.code in FINAL or not (again or result.code == 255):
                    break
            return result

        with ThreadPoolExecutor(max_workers=min(self.parallel, max(1, len(workers)))) as pool:
            return dict(zip(workers, pool.map(one, workers), strict=True))

    def _run(
        self, argv: list[str], worker: int, cwd: Path | None, show: bool, timeout: float
    ) -> Result:
        # Some commands follow a log for hours: `timeout` then is none.
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        kept: dict[str, list[str]] = {"out": [], "err": []}

        def read(name: str) -> None:
            for raw in getattr(process, f"std{name}"):
                line = _text(raw)
                kept[name].append(line)
                if show and (name == "out" or not line.startswith(GCLOUD_CHATTER)):
                    self.say(f"[worker {worker}] {line.rstrip()}")

        readers = [threading.Thread(target=read, args=(name,), daemon=True) for name in kept]
        for reader in readers:
            reader.start()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kept["err"].append(f"no end within {timeout:g} s")
        for reader in readers:
            reader.join(timeout=10)
        return Result(process.returncode, "".join(kept["out"]), "".join(kept["err"]))


def all_well(results: dict[int, Result], what: str) -> dict[int, Result]:
    """Returns the results.

    Raises:
      PodError: a worker failed; the message names each and why.
    """
    failed = {worker: result for worker, result in results.items() if result.code}
    if failed:
        lines = [f"worker {worker}: {result.reason}" for worker, result in failed.items()]
        hint = ""
        if any(result.code == 127 for result in failed.values()):
            hint = "\n(no code there yet? ./tpu_command.sh sync ...)"
        raise PodError(
            f"{what} failed on {len(failed)} of {len(results)} workers\n" + "\n".join(lines) + hint
        )
    return results


def parse_json(result: Result, what: str) -> object:
    """What a gcloud command with --format=json said.

    Raises:
      PodError: it failed, or said no JSON.
    """
    if result.code:
        raise PodError(f"{what}: {result.reason}")
    try:
        return json.loads(result.out)
    except ValueError as error:
        raise PodError(f"{what}: gcloud gave no JSON ({error}): {result.out[:200]!r}") from error


def _need_gcloud() -> None:
    if shutil.which("gcloud") is None:
        raise ValueError("gcloud is not installed: https://cloud.google.com/sdk/docs/install")


def _text(raw: bytes) -> str:
    return raw.decode(sys.stdout.encoding or "utf-8", errors="replace")
