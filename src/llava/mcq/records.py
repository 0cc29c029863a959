"""Results on disk: one JSON line per question, failures included, each safe once it is written.

    OUT/run.json                          what all chunks have to agree on
    OUT/chunks/chunk-00002-of-00008.jsonl lines in the order they were answered
    OUT/results.jsonl, OUT/summary.json   when every question has its line

A process may die at any byte: a last line without its end is dropped by readers, and cut off by the
process that goes on with the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from ...codec.llava.keys import config_hash
from ...codec.llava.rows import json_line
from ...files import write_atomic
from .questions import Question

RUN = "run.json"
CHUNKS = "chunks"
RESULTS = "results.jsonl"
SUMMARY = "summary.json"
FAILED = ("decode_error", "gen_error")
_UNDECIDING = ("path", "assets", "options", "videos")

Record = dict[str, Any]


class ResultsError(ValueError):
    """Results that do not fit together."""


def blank(question: Question, run: str, attempt: int) -> Record:
    """A record with what is known before the question is asked.

    Args:
      question: which one.
      run: hash of the run, see `Run`.
      attempt: 0, or how often it had failed before.
    """
    return {
        "index": question.index,
        "id": question.id,
        "task": question.task,
        "video": question.video,
        **question.span.row(),
        "question": question.text,
        **question.blank(),
        "status": None,
        "reply": None,
        "error": None,
        "source": "none",
        "visual_tokens": None,
        "text_tokens": None,
        "prompt": None,
        "attempt": attempt,
        "run": run,
    }


def run_hash(run: Mapping[str, Any]) -> str:
    """Changes with anything that may change an answer; not with where files lie, or which
    of equal visuals were stored."""
    return config_hash(_deciding(run))


def _deciding(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _deciding(v) for k, v in value.items() if k not in _UNDECIDING}
    return value


def claim(out: Path, run: Mapping[str, Any]) -> str:
    """Makes the folder of a run, or goes on in it.

    Args:
      out: the folder.
      run: everything that decides the answers.

    Returns:
      The hash of the run, which every line carries.

    Raises:
      ResultsError: the folder holds results of another run.
    """
    name = run_hash(run)
    path = out / RUN
    if path.exists():
        there = read_run(out)
        if there["hash"] != name:
            differing = ", ".join(_differing(there, run)) or "version"
            raise ResultsError(
                f"{out} holds a run with other options ({differing} differ): choose another --out, "
                "or remove it"
            )
        return name
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps({**run, "hash": name}, indent=1) + "\n").encode())
    return name


def read_run(out: Path) -> dict[str, Any]:
    """What run.json says.

    Raises:
      ResultsError: there is none, or it is no JSON.
    """
    try:
        return json.loads((out / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ResultsError(f"{out} holds no {RUN}: it is no folder of an evaluation") from error
    except ValueError as error:
        raise ResultsError(f"{out / RUN} is no JSON ({error})") from error


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    a, b = _deciding(first), _deciding(second)
    for name in sorted({*a, *b} - {"hash"}):
        if a.get(name) != b.get(name):
            nested = isinstance(a.get(name), dict) and isinstance(b.get(name), dict)
            yield from (f"{name}.{n}" for n in _differing(a[name], b[name])) if nested else (name,)


def whole_lines(path: Path) -> tuple[list[Record], int]:
    """(records of a file, bytes that they take); what follows the last line's end is not read.

    Raises:
      ResultsError: a whole line is no record.
    """
    content = path.read_bytes()
    size = content.rfind(b"\n") + 1
    records = []
    for number, line in enumerate(content[:size].splitlines(), start=1):
        try:
            record = json.loads(line)
            records.append({"index": int(record["index"]), **record})
        except (ValueError, TypeError, KeyError) as error:
            raise ResultsError(
                f"{path}, line {number} is no result ({error}): remove it"
            ) from error
    return records, size


def chunk_files(out: Path) -> list[Path]:
    """The files of all chunks, however many there were."""
    return sorted((out / CHUNKS).glob("chunk-*-of-*.jsonl"))


def collect(out: Path, run: str) -> dict[int, Record]:
    """The last attempt at each question that has a line.

    Raises:
      ResultsError: a line of another run, or two lines of one attempt.
    """
    found: dict[int, Record] = {}
    seen: dict[tuple[int, int], Path] = {}
    for path in chunk_files(out):
        for record in whole_lines(path)[0]:
            if record.get("run") != run:
                raise ResultsError(f"{path} has a line of another run ({record.get('run')})")
            place = (record["index"], record["attempt"])
            if place in seen:
                both = path.name if seen[place] == path else f"{seen[place].name} and {path.name}"
                raise ResultsError(
                    f"{out / CHUNKS}: question {place[0]} was answered twice, in {both}: two jobs "
                    "worked on it at once; remove one of the lines"
                )
            seen[place] = path
            if place[1] >= found.get(place[0], record)["attempt"]:
                found[place[0]] = record
    return found


class ChunkFile:
    """Appends lines that survive a crash; cuts off what an earlier process left half-written."""

    def __init__(self, out: Path, number: int, count: int) -> None:
        self.path = out / CHUNKS / f"chunk-{number:05d}-of-{count:05d}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            size = whole_lines(self.path)[1]
            if size != self.path.stat().st_size:
                os.truncate(self.path, size)
        self._file = self.path.open("ab")

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes lines; when it returns they are on the disk."""
        self._file.write(b"".join(map(json_line, records)))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> ChunkFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


class Indexed(Protocol):
    """Something to be asked: a question, or a judgement of an answer."""

    @property
    def index(self) -> int:
        """Its place among all."""
        ...


Asking = TypeVar("Asking", bound=Indexed)


def pending(
    questions: Sequence[Asking],
    done: Mapping[int, Record],
    retry: bool,
    failed: Collection[str] = FAILED,
) -> list[tuple[Asking, int]]:
    """(question, attempt) of what is still to be asked; with `retry` also of what `failed`."""
    todo = []
    for question in questions:
        record = done.get(question.index)
        if record is None:
            todo.append((question, 0))
        elif retry and record["status"] in failed:
            todo.append((question, record["attempt"] + 1))
    return todo
