"""Asks a judge about all answers of a file; a run that died goes on with what is missing.

OUT/run.json                              judge, prompts, predictions
OUT/chunks/chunk-00000-of-00001.jsonl     a line per judgement, in the order they came
OUT/results.jsonl, OUT/summary.json       when every answer has its line
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ..mcq.records import ChunkFile, Record, claim, collect, pending
from .judges import BrokenJudge, Judge, JudgeError, Reply
from .parse import UnreadableError, read_verdict
from .predictions import Job
from .prompts import VERSION, prompts_hash

STATUSES = ("ok", "unparsed", "judge_error", "unanswered")
TRIES = 3
_HOPELESS = 20  # failures in a row: it is the judge

Todo = Sequence[tuple[Job, int]]


def describe_run(jobs: Sequence[Job], jobs_hash: str, path: str, judge: Judge) -> dict[str, Any]:
    """What run.json states: all that decides the judgements."""
    return {
        "version": VERSION,
        "judge": judge.describe(),
        "prompts": prompts_hash(),
        "benchmark": {"path": path, "questions": len(jobs), "questions_hash": jobs_hash},
    }


def missing(
    jobs: Sequence[Job], out: Path, run: dict[str, Any], retry_unparsed: bool = False
) -> tuple[str, Todo]:
    """(hash of the run, jobs that are to be asked and how often they were): those without a line,
    those whose request failed and, if wanted, those whose reply could not be read.

    Raises:
      ResultsError: the folder holds another run, or unusable lines.
    """
    name = claim(out, run)
    again = ("judge_error", "unparsed") if retry_unparsed else ("judge_error",)
    return name, pending(jobs, collect(out, name), retry=True, failed=again)


def rate(
    jobs: Sequence[Job],
    judge: Judge,
    out: Path,
    run: dict[str, Any],
    concurrency: int = 8,
    tries: int = TRIES,
    retry_unparsed: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Gets a line for each job that has none.

    Args:
      jobs: all of a file of predictions.
      judge: who is asked.
      out: folder of the results.
      run: `describe_run`.
      concurrency: requests at a time.
      tries: replies that are asked for at most until one can be read.
      retry_unparsed: ask again where none could be, in earlier runs.
      progress: told of (jobs done, jobs to do).

    Returns:
      Number of lines written.

    Raises:
      ResultsError: the folder holds another run, or unusable lines.
      BrokenJudge: no request will do, or many failed in a row; what was answered is written.
      ValueError: concurrency or tries below 1.
    """
    if concurrency < 1 or tries < 1:
        raise ValueError(f"concurrency = {concurrency} and tries = {tries} must be at least 1")
    name, todo = missing(jobs, out, run, retry_unparsed)
    written = failing = 0

    def one(job: Job, attempt: int) -> Record:
        replies, error = _ask(judge, job, tries) if job.answered else ([], None)
        return record_of(job, attempt, name, run, replies, error)

    with ChunkFile(out, 0, 1) as file, ThreadPoolExecutor(concurrency) as pool:
        queue = iter(todo)
        waiting: set[Future[Record]] = set()
        try:
            while True:
                while len(waiting) < 2 * concurrency:
                    item = next(queue, None)
                    if item is None:
                        break
                    waiting.add(pool.submit(one, *item))
                if not waiting:
                    break
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                records, fault = _results(done)
                file.write(records)
                written += len(records)
                for record in records:
                    failing = failing + 1 if record["status"] == "judge_error" else 0
                if failing >= _HOPELESS:
                    told = records[-1]["error"] if records else ""
                    fault = BrokenJudge(f"{failing} requests failed in a row, last: {told}")
                progress(written, len(todo))
                if fault is not None:
                    raise fault
        except BaseException:
            # Whatever stops the run: what was sent is paid for, so it is waited for, and written.
            waiting = {future for future in waiting if not future.cancel()}
            file.write(_results(wait(waiting).done)[0])
            raise
    return written


def _results(done: Iterable[Future[Record]]) -> tuple[list[Record], BaseException | None]:
    """(records of those that came to one, why one of the others did not)."""
    futures = list(done)
    faults = [fault for future in futures if (fault := future.exception()) is not None]
    records = [future.result() for future in futures if future.exception() is None]
    return records, faults[0] if faults else None


def _ask(judge: Judge, job: Job, tries: int) -> tuple[list[Reply], str | None]:
    """(replies, the last of which can be read if any can; why there is none)."""
    replies: list[Reply] = []
    for _ in range(tries):
        try:
            replies.append(judge.ask(job))
        except JudgeError as error:
            return replies, str(error)
        try:
            read_verdict(replies[-1].text, job.aspect)
        except UnreadableError:
            continue
        break
    return replies, None


def record_of(
    job: Job,
    attempt: int,
    name: str,
    run: dict[str, Any],
    replies: Sequence[Reply],
    error: str | None,
) -> Record:
    """The line of a job.

    Args:
      job: what was rated.
      attempt: 0, or how often there was a line before.
      name: hash of the run.
      run: `describe_run`.
      replies: all of them, the one that counts last; none for a job without an answer.
      error: why there is no further one.
    """
    record = {
        "index": job.index,
        "question_id": job.id,
        "aspect": job.aspect,
        "task": job.task,
        "status": "judge_error" if error else "unanswered",
        "score": None,
        "pred": None,
        "truncated": False,
        "reply": replies[-1].text if replies else None,
        "earlier": [reply.text for reply in replies[:-1]],
        "error": error,
        "model": replies[-1].model if replies else None,
        "tokens": _tokens(replies),
        "judge": run["judge"]["id"],
        "prompts": run["version"],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "attempt": attempt,
        "run": name,
    }
    if error is None and replies:
        try:
            record.update(status="ok", **read_verdict(replies[-1].text, job.aspect)._asdict())
        except UnreadableError as fault:
            record.update(status="unparsed", error=str(fault))
    return record


def _tokens(replies: Sequence[Reply]) -> list[int] | None:
    """(read, written) of all replies, which all cost; None if one is not known."""
    counts = [reply.tokens for reply in replies]
    if not counts or None in counts:
        return None
    return [sum(count[k] for count in counts if count is not None) for k in range(2)]
