"""Answers of a model as one file that a judge reads, whoever wrote it.

A line of predictions.jsonl: `question_id`, `question`, `answer` (the reference), `pred` (null where
the model gave none); perhaps `aspects` (default: qa), `task`, and `question_2`, `pred_2` of a
consistency item.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...codec.llava.rows import RowError, iter_rows, json_line
from ..mcq.records import Record
from ..mcq.score import sources_counted
from .prompts import ASPECTS
from .questions import QA

PREDICTIONS = "predictions.jsonl"


@dataclasses.dataclass(frozen=True)
class Job:
    """One thing that a judge rates.

    Attributes:
      index: place among all, from 0.
      id: of the question.
      aspect: see `prompts.ASPECTS`.
      task: what results are grouped by.
      question: what was asked.
      answer: the reference.
      pred: what the model said; None if it gave no answer.
      question_2, pred_2: of consistency, the other question and its answer.
    """

    index: int
    id: str
    aspect: str
    task: str
    question: str
    answer: str
    pred: str | None
    question_2: str | None = None
    pred_2: str | None = None

    @property
    def answered(self) -> bool:
        """Whether there is something to rate; an answer without a word is none."""
        replies = [self.pred, self.pred_2] if self.aspect == "CO" else [self.pred]
        return all(reply is not None and reply.strip() for reply in replies)


def prediction_lines(records: Iterable[Record]) -> Iterator[bytes]:
    """Lines of predictions.jsonl; the two answers of a consistency item on one.

    Args:
      records: of all open questions, in order.
    """
    items: dict[str, dict[str, Any]] = {}
    for record in records:
        pred = record["reply"] if record["status"] == "ok" else None
        if record["part"] == 2:
            items[record["id"]].update(question_2=record["question"], pred_2=pred)
            continue
        items[record["id"]] = {
            "question_id": record["id"],
            "task": record["task"],
            "aspects": record["aspects"],
            "question": record["question"],
            "answer": record["reference"],
            "pred": pred,
            "video": record["video"],
        }
    return map(json_line, items.values())


def answer_figures(records: Sequence[Record]) -> dict[str, Any]:
    """What is known before a judge: `questions`, `statuses`, `coverage`, mean `tokens`, `visuals`
    by source, and `questions` of each of the `tasks`."""
    statuses = {
        name: sum(r["status"] == name for r in records)
        for name in ("ok", "decode_error", "gen_error")
    }
    asked = [r for r in records if r["text_tokens"] is not None]
    return {
        "questions": len(records),
        "statuses": statuses,
        "coverage": statuses["ok"] / len(records),
        "empty": sum(r["status"] == "ok" and not r["reply"].strip() for r in records),
        "tokens": {
            kind: math.fsum(r[f"{kind}_tokens"] for r in asked) / len(asked) if asked else None
            for kind in ("visual", "text")
        },
        "visuals": sources_counted(records),
        "tasks": {
            task: sum(record["task"] == task for record in records)
            for task in dict.fromkeys(record["task"] for record in records)
        },
    }


def read_jobs(path: str | Path) -> tuple[list[Job], str]:
    """What there is to rate in a file of predictions.

    Args:
      path: the file, JSONL or a JSON list, or the folder of a complete `codecvit llava answer`.

    Returns:
      (jobs, 16 hex digits that change with any of them).

    Raises:
      ValueError: no predictions, a row that lacks something, or two of one id.
      OSError: the file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        path = path / PREDICTIONS
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist: `codecvit llava answer --merge --out {path.parent}` "
                "makes it when every question has its line"
            )
    jobs: list[Job] = []
    seen = set()
    for number, row in iter_rows(path):
        where = f"{path}, row {number}"
        if isinstance(row, RowError):
            raise ValueError(f"{where} {row}")
        name = str(_field(row, "question_id", where))
        if name in seen:
            raise ValueError(f"{where}: the second of question_id {name}")
        seen.add(name)
        jobs += _jobs(row, name, where, len(jobs))
    if not jobs:
        raise ValueError(f"{path} holds no predictions")
    digest = hashlib.sha256()
    for job in jobs:
        digest.update(json.dumps(dataclasses.asdict(job), sort_keys=True).encode() + b"\n")
    return jobs, digest.hexdigest()[:16]


def _jobs(row: Mapping[str, Any], name: str, where: str, first: int) -> list[Job]:
    aspects = row.get("aspects", QA)
    if not isinstance(aspects, list | tuple) or not aspects or not set(aspects) <= set(ASPECTS):
        raise ValueError(f"{where}: aspects = {aspects!r} must be some of {', '.join(ASPECTS)}")
    pair = "CO" in aspects
    return [
        Job(
            index=first + place,
            id=name,
            aspect=aspect,
            task=str(row.get("task") or "all"),
            question=str(_field(row, "question", where)),
            answer=str(_field(row, "answer", where)),
            pred=_reply(row, "pred", where),
            question_2=str(_field(row, "question_2", where)) if pair else None,
            pred_2=_reply(row, "pred_2", where) if pair else None,
        )
        for place, aspect in enumerate(aspects)
    ]


def _reply(row: Mapping[str, Any], name: str, where: str) -> str | None:
    value = _field(row, name, where)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: {name} = {value!r} must be a text, or null for no answer")
    return value


def _field(row: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in row:
        raise ValueError(f"{where} lacks {name}")
    return row[name]
