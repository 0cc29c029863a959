"""Lines of all chunks -> one file in the order of the benchmark, and its figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...codec.llava.rows import json_line
from ...files import write_atomic
from .records import (
    RESULTS,
    SUMMARY,
    Record,
    ResultsError,
    collect,
    read_run,
    whole_lines,
)
from .score import score

_SHOWN = 8


class Incomplete(ResultsError):
    """Questions without a line."""


def merge(out: Path) -> dict[str, Any]:
    """Writes results.jsonl and summary.json.

    Args:
      out: folder of a run.

    Returns:
      The summary: the run, and the figures of `score`.

    Raises:
      Incomplete: some questions have no line; none is left out in silence.
      ResultsError: lines of other runs, two lines of one question, or none at all.
    """
    run = read_run(out)
    found = collect(out, run["hash"])
    total = run["benchmark"]["questions"]
    holes = [index for index in range(total) if index not in found]
    if holes:
        told = ", ".join(map(str, holes[:_SHOWN])) + (", ..." if len(holes) > _SHOWN else "")
        raise Incomplete(
            f"{out}: {len(holes)} of {total} questions have no answer yet (numbers {told}): run "
            "the chunks that they are in"
        )
    strange = sorted(set(found) - set(range(total)))
    if strange:
        raise ResultsError(
            f"{out}: answers of questions {strange[:_SHOWN]}, of which there are {total}"
        )
    records = [found[index] for index in range(total)]
    summary = {"run": run, **score(records)}
    write_atomic(out / RESULTS, b"".join(map(json_line, records)))
    write_atomic(out / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def read_results(out: Path) -> tuple[dict[str, Any], Sequence[Record]]:
    """(run, records in order) of a complete run.

    Args:
      out: its folder.

    Raises:
      ResultsError: it is not merged.
    """
    run = read_run(out)
    path = out / RESULTS
    if not path.exists():
        raise ResultsError(
            f"{path} does not exist: `codecvit llava eval --merge --out {out}` makes it when every "
            "question has its line"
        )
    records, _ = whole_lines(path)
    if [record["index"] for record in records] != list(range(run["benchmark"]["questions"])):
        raise ResultsError(f"{path} does not hold each question once: merge again")
    return run, records
