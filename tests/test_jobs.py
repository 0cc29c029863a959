"""Process pool: order, failures, crashing workers, bounded memory."""

from __future__ import annotations

import os
import signal
import time

import pytest

from codecvit.jobs import Failure, run_jobs


@pytest.fixture(autouse=True)
def _workers_find_this_module(monkeypatch, root):
    monkeypatch.syspath_prepend(root)


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
    if number == 2 and not os.path.exists(flag):  # noqa: PTH110
        with open(flag, "w"):  # noqa: PTH123
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def buggy(number: int) -> int:
    return [0, 1][number]


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order_with_failures_in_their_place(workers):
    results = list(run_jobs(square, range(12), workers=workers))
    expected = [(n, n * n) for n in range(12)]
    expected[5] = (5, Failure("ValueError", "five is refused"))
    assert results == expected


def test_a_dying_worker_costs_only_its_own_item():
    results = dict(run_jobs(die_at_three, range(10), workers=2))
    assert list(results) == list(range(10))
    assert isinstance(results.pop(3), Failure)
    assert all(result == -number for number, result in results.items())


def test_an_item_under_way_when_a_worker_died_is_retried(tmp_path):
    jobs = [(n, str(tmp_path / "flag")) for n in range(6)]
    assert [result for _, result in run_jobs(die_once, jobs, workers=2)] == list(range(6))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_is_raised(workers):
    with pytest.raises(IndexError):
        list(run_jobs(buggy, range(4), workers=workers))


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
    assert len(taken) <= 5 + 3 * 2
    jobs.close()


def test_negative_workers_are_refused():
    with pytest.raises(ValueError, match="workers = -1"):
        list(run_jobs(abs, [1], workers=-1))
