"""Where the calls of a job run: processes of this machine, or Ray actors on many.

A crew starts workers and waits for them; `jobs.run_jobs` decides what they do. A worker holds one
item at a time and has a pipe of its own, so that a kill at any moment, in the middle of sending a
result as well, costs nothing but that item.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

RUNNERS = ("local", "ray")

_GOODBYE_SECONDS = 5


class WorkerDied(Exception):
    """A worker ended without an answer."""


class Answer(NamedTuple):
    """What a worker sends: that it is ready, or the outcome of an item, or an error to raise."""

    value: Any = None
    error: Exception | None = None


class Worker(Protocol):
    """A process that says once that it is ready, then answers each item that it is given."""

    def send(self, item: Any) -> None:
        """Gives the worker an item; raises WorkerDied if it is gone."""

    def receive(self) -> Answer:
        """The next answer, waiting for it; raises WorkerDied if none will come."""

    def kill(self) -> None:
        """Ends the worker at once."""

    def dismiss(self) -> None:
        """Ends the worker, which has nothing to do."""


class Crew(Protocol):
    """Starts workers that all call one function."""

    size: int

    def start(self) -> Worker:
        """Starts a worker."""

    def wait(self, workers: Iterable[Worker], timeout: float | None) -> list[Worker]:
        """The workers that have an answer or died, as soon as there are any or after `timeout`."""

    def close(self) -> None:
        """Ends what the crew itself has running."""


def make_crew(runner: str, call: Callable[[Any], Any], workers: int | None) -> Crew:
    """The crew of a runner.

    Args:
      runner: `local` or `ray`.
      call: a function of one item that can be pickled by name.
      workers: how many at once; None takes one per core, with Ray one per core of the cluster.

    Raises:
      ValueError: there is no such runner, or Ray is not installed.
    """
    if runner == "local":
        return LocalCrew(call, workers)
    if runner == "ray":
        return RayCrew(call, workers)
    raise ValueError(f"runner = {runner!r} must be one of {', '.join(RUNNERS)}")


def answer(call: Callable[[Any], Any], item: Any) -> Answer:
    """Calls a function; an error is made ready to travel to another process."""
    try:
        return Answer(call(item))
    except Exception as error:  # noqa: BLE001  raised again by who asked
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        return Answer(error=_portable(error))


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same if it does not survive pickling."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  of our own making
    except Exception:  # noqa: BLE001  any class may fail in its own way
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


class LocalCrew:
    """Processes of this machine."""

    def __init__(self, call: Callable[[Any], Any], workers: int | None) -> None:
        self.size = len(os.sched_getaffinity(0)) if workers is None else workers
        self._call = call
        # Spawned, not forked: a fork copies the locks of running threads (decoders, readers) in any
        # state.
        self._context = multiprocessing.get_context("spawn")
        # A worker that is killed cannot clear up its temporary files: whoever ends it does.
        self._scratch = tempfile.TemporaryDirectory(prefix="codecvit-")

    def start(self) -> LocalWorker:
        return LocalWorker(self._context, self._call, tempfile.mkdtemp(dir=self._scratch.name))

    def wait(self, workers: Iterable[LocalWorker], timeout: float | None) -> list[LocalWorker]:
        handles = {}
        for worker in workers:
            handles[worker.pipe] = handles[worker.process.sentinel] = worker
        ready = multiprocessing.connection.wait(list(handles), timeout)
        return list(dict.fromkeys(handles[handle] for handle in ready))

    def close(self) -> None:
        self._scratch.cleanup()


class LocalWorker:
    """One process, its pipe, and a folder for its temporary files."""

    def __init__(
        self,
        context: multiprocessing.context.SpawnContext,
        call: Callable[[Any], Any],
        scratch: str,
    ) -> None:
        self._scratch = scratch
        self.pipe, far_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(call, far_end, scratch), daemon=True)
        self.process.start()
        far_end.close()

    def send(self, item: Any) -> None:
        try:
            self.pipe.send(item)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WorkerDied from error

    def receive(self) -> Answer:
        try:
            # The end of the process and the last bytes in the pipe may be noticed in any order.
            if not self.pipe.poll():
                raise EOFError("the process ended")
            return pickle.loads(self.pipe.recv_bytes())  # noqa: S301  from our own process
        except (EOFError, OSError) as error:
            raise WorkerDied(str(error)) from error

    def kill(self) -> None:
        self.process.kill()
        self._clear()

    def dismiss(self) -> None:
        # It notices that the pipe ends, and may clear up.
        self.pipe.close()
        self.process.join(_GOODBYE_SECONDS)
        self.process.kill()
        self._clear()

    def _clear(self) -> None:
        self.process.join()
        self.process.close()
        self.pipe.close()
        shutil.rmtree(self._scratch, ignore_errors=True)


def _serve(call: Callable[[Any], Any], pipe: Connection, scratch: str) -> None:
    """The life of a local worker: it ends with the pipe, so with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    tempfile.tempdir = scratch
    pipe.send_bytes(pickle.dumps(Answer()))
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        found = answer(call, item)
        try:
            data = pickle.dumps(found)
        except Exception as error:  # noqa: BLE001  a result that cannot travel is raised, too
            data = pickle.dumps(Answer(error=_portable(error)))
        try:
            pipe.send_bytes(data)
        except BrokenPipeError:
            return


class RayCrew:
    """Ray actors: on the cluster that RAY_ADDRESS names, or else on one started here."""

    def __init__(self, call: Callable[[Any], Any], workers: int | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise ValueError(
                "runner = 'ray' needs the package ray: pip install 'codecvit[ray]'"
            ) from error
        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            if os.environ.get("RAY_ADDRESS"):
                ray.init(log_to_driver=False)
            else:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                ray.init(
                    address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False
                )
        cores = int(ray.cluster_resources().get("CPU", 1))
        self.size = cores if workers is None else workers
        self._call = call
        # The item that a dead actor held is our business, so Ray tries nothing again.
        self._actor = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Actor)

    def start(self) -> RayWorker:
        return RayWorker(self._ray, self._actor.remote(self._call))

    def wait(self, workers: Iterable[RayWorker], timeout: float | None) -> list[RayWorker]:
        worker_of = {worker.pending: worker for worker in workers}
        ready, _ = self._ray.wait(list(worker_of), num_returns=1, timeout=timeout)
        return [worker_of[reference] for reference in ready]

    def close(self) -> None:
        if self._started:
            self._ray.shutdown()


class RayWorker:
    """One actor and the reference to what it is about to answer."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self.pending = actor.ready.remote()

    def send(self, item: Any) -> None:
        self.pending = self._actor.run.remote(item)

    def receive(self) -> Answer:
        errors = self._ray.exceptions
        try:
            return self._ray.get(self.pending)
        except errors.RayTaskError:
            raise  # an error of the actor itself, not of its machine
        except errors.RayError as error:
            raise WorkerDied(str(error)) from error

    def kill(self) -> None:
        self._ray.kill(self._actor)

    def dismiss(self) -> None:
        self.kill()


class _Actor:
    """What runs on a Ray worker; codecvit must be installed there."""

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self._call = call

    def ready(self) -> Answer:
        return Answer()

    def run(self, item: Any) -> Answer:
        return answer(self._call, item)
