"""Jobs on real processes: order, failures, kills, time limits, bounded memory, shares, Ray."""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from multiprocessing import active_children
from pathlib import Path

import pytest

from codecvit.jobs import (
    Failure,
    JobOptions,
    Shard,
    Summary,
    add_job_arguments,
    job_options,
    run_jobs,
)

DIED = Failure("WorkerDied", "the process that worked on it died twice")


@pytest.fixture(autouse=True)
def _workers_find_this_module(monkeypatch, root):
    monkeypatch.syspath_prepend(root)


@pytest.fixture(scope="module")
def ray():
    """A local Ray for all tests of this module: starting one takes seconds."""
    ray = pytest.importorskip("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def square(number: int) -> int:
    """Slower for small numbers, so that results arrive out of order."""
    time.sleep(0.02 * (3 - number % 4))
    if number == 5:
        raise ValueError("five is refused")
    return number * number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return -number


def die_once(job: tuple[int, str]) -> int:
    """Kills its worker the first time that it sees number 2."""
    number, flag = job
    if number == 2 and not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def trouble(job: tuple[int, str]) -> int:
    """Refuses 1, dies at 3, hangs at 5; notes every call."""
    number, folder = job
    with (Path(folder) / str(number)).open("a") as notes:
        notes.write("x")
    if number == 1:
        raise ValueError("one is refused")
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 5:
        time.sleep(60)
    return number


def megabyte(number: int) -> bytes:
    time.sleep(0.002)
    return number.to_bytes(4, "big") * 250_000


def buggy(number: int) -> int:
    return [0, 1][number]


def unsendable(number: int):
    return lambda: number


def litter(number: int) -> str:
    """Makes a temporary file and is killed, the first time and the second."""
    folder = tempfile.mkdtemp()
    if number:
        os.kill(os.getpid(), signal.SIGKILL)
    return folder


@pytest.mark.parametrize("workers", [0, 2, None])
def test_results_come_in_order_with_failures_in_their_place(workers):
    results = list(run_jobs(square, range(12), workers=workers))
    expected = [(n, n * n) for n in range(12)]
    expected[5] = (5, Failure("ValueError", "five is refused"))
    assert results == expected


def test_a_dying_worker_costs_only_its_own_item():
    results = dict(run_jobs(die_at_three, range(10), workers=2))
    assert list(results) == list(range(10))
    assert results.pop(3) == DIED
    assert all(result == -number for number, result in results.items())


def test_an_item_under_way_when_a_worker_died_is_retried(tmp_path):
    jobs = [(n, str(tmp_path / "flag")) for n in range(6)]
    assert [result for _, result in run_jobs(die_once, jobs, workers=2)] == list(range(6))


@pytest.mark.slow
def test_local_processes_and_ray_agree_about_trouble(tmp_path, ray):
    """Refused, killed and timed out: the same outcomes, and only the killed one is tried twice."""
    outcomes = []
    for runner in ("local", "ray"):
        folder = tmp_path / runner
        folder.mkdir()
        jobs = [(n, str(folder)) for n in range(8)]
        results = run_jobs(trouble, jobs, workers=2, runner=runner, time_limit=1.5)
        outcomes.append([result for _, result in results])
        calls = {path.name: len(path.read_text()) for path in folder.iterdir()}
        assert calls == {str(n): 2 if n == 3 else 1 for n in range(8)}
    expected = [
        0,
        Failure("ValueError", "one is refused"),
        *(2, DIED, 4),
        Failure("TimeLimit", "took longer than 1.5 s (--time-limit)"),
        *(6, 7),
    ]
    assert outcomes == [expected, expected]


def test_kills_at_any_moment_lose_nothing():
    """Workers are killed while they start, work and send; what comes out is whole and in order.

    (A pool whose workers share a pipe breaks here: a message is torn.)
    """
    rng, kills, results = random.Random(0), [], []
    for found in run_jobs(megabyte, range(1500), workers=2):
        results.append(found)
        # By results, not by the clock: where workers need long to start, none would live.
        if len(results) % 100 == 0 and (children := active_children()):
            time.sleep(rng.uniform(0, 0.02))
            kills.append(rng.choice(children).pid)
            os.kill(kills[-1], signal.SIGKILL)
    assert [number for number, _ in results] == list(range(1500))
    assert len(kills) > 10
    lost = [number for number, result in results if result == DIED]
    assert len(lost) <= len(kills) // 2, "killed twice, by chance"
    assert all(result == megabyte(n) for n, result in results if n not in lost)


def test_a_killed_worker_leaves_no_temporary_files():
    results = dict(run_jobs(litter, [0, 1], workers=1))
    assert results[1] == DIED
    scratch = Path(results[0]).parents[1]
    assert scratch.name.startswith("codecvit-") and not scratch.exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_is_raised(workers):
    with pytest.raises(IndexError) as raised:
        list(run_jobs(buggy, range(4), workers=workers))
    if workers:
        assert "return [0, 1][number]" in "".join(raised.value.__notes__), "where it happened"


def test_a_bug_is_raised_from_ray(ray):
    with pytest.raises(IndexError):
        list(run_jobs(buggy, range(4), workers=1, runner="ray"))


def test_a_result_that_cannot_be_sent_is_a_bug():
    with pytest.raises((AttributeError, TypeError, RuntimeError), match="unsendable"):
        list(run_jobs(unsendable, [1], workers=1))


def test_workers_that_cannot_start_are_an_error(monkeypatch, capfd):
    monkeypatch.setattr("sys.path", [p for p in os.sys.path if p != os.sys.path[0]])
    with pytest.raises(RuntimeError, match="ended before they could start"):
        list(run_jobs(square, [1, 2], workers=1))
    assert "ModuleNotFoundError" in capfd.readouterr().err


def test_look_ahead_is_bounded():
    """Items are taken as results are consumed, not all at once."""
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    jobs = run_jobs(abs, items(), workers=2)
    for _ in range(5):
        next(jobs)
    assert len(taken) <= 5 + 8 * 2
    jobs.close()
    assert not active_children()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "workers = -1"),
        ({"workers": 1, "runner": "slurm"}, "runner = 'slurm' must be one of local, ray"),
        ({"workers": 0, "runner": "ray"}, "workers = 0 works in this process"),
        ({"workers": 1, "time_limit": 0}, "time_limit = 0 must be above 0"),
        ({"workers": 1, "time_limit": float("nan")}, "time_limit = nan"),
        ({"workers": 0, "time_limit": 5}, "needs workers of at least 1"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        list(run_jobs(abs, [1], **options))


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'codecvit\[ray\]'"):
        list(run_jobs(abs, [1], workers=1, runner="ray"))


def test_shards_are_disjoint_complete_and_independent_of_order():
    keys = [f"clip {n}" for n in range(23)]
    shuffled = random.Random(1).sample(keys, len(keys)) + keys[:3]
    parts = [Shard(i, 4).mine(keys) for i in range(4)]
    assert [Shard.parse(f"{i}/4").mine(shuffled) for i in range(4)] == parts
    assert sorted(sum(parts, [])) == sorted(keys)
    assert max(map(len, parts)) - min(map(len, parts)) == 1
    for i, part in enumerate(parts):
        assert part == [key for n, key in enumerate(sorted(keys)) if Shard(i, 4).takes(n)]


@pytest.mark.parametrize("text", ["4/4", "-1/4", "1", "0/0", "a/b", "1/4/2", "", "/4"])
def test_a_shard_that_does_not_exist_is_refused(text):
    with pytest.raises(ValueError, match=r"must be i/N with 0 <= i < N"):
        Shard.parse(text)


def _parse(*arguments: str) -> JobOptions:
    parser = argparse.ArgumentParser()
    add_job_arguments(parser)
    return job_options(parser.parse_args(arguments))


def test_options_are_read_from_the_command_line():
    assert _parse() == JobOptions()
    given = _parse(
        *("--workers", "3", "--runner", "ray", "--time-limit", "2.5"),
        *("--shard", "2/5", "--max-failures", "7"),
    )
    assert given == JobOptions(3, "ray", 2.5, Shard(2, 5), 7)
    for arguments in (["--max-failures", "-1"], ["--shard", "5/5"], ["--workers", "-2"]):
        with pytest.raises(ValueError, match=arguments[0][2:].replace("-", "_")):
            _parse(*arguments)


@pytest.mark.parametrize(
    ("max_failures", "summary", "status"),
    [
        (None, Summary(), 0),
        (None, Summary(ok=1, failed=99), 0),
        (None, Summary(skipped=1, failed=99), 0),
        (None, Summary(failed=1), 1),
        (2, Summary(ok=9, failed=2), 0),
        (2, Summary(ok=9, failed=3), 1),
        (0, Summary(ok=9), 0),
        (0, Summary(ok=9, failed=1), 1),
        (5, Summary(failed=1), 1),
    ],
)
def test_failures_decide_the_exit_status(max_failures, summary, status):
    assert JobOptions(max_failures=max_failures).exit_status(summary) == status


def test_a_summary_counts_in_one_line():
    assert str(Summary(ok=5, skipped=2, failed=1)) == "5 ok, 2 skipped, 1 failed"
