"""Judges: whatever is asked how well an answer agrees with a reference.

All of them reply with text, and all replies go through one strict reader.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, Protocol

from .predictions import Job
from .prompts import ASPECTS


class JudgeError(RuntimeError):
    """One request that failed; it costs its answer, and a later run asks again."""


class BrokenJudge(RuntimeError):
    """A judge that no request will get a reply from."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a judge said.

    Attributes:
      text: as it came; None if there was none, such as a refusal.
      model: what the endpoint says answered, if it says.
      tokens: (read, written), if it says.
    """

    text: str | None
    model: str | None = None
    tokens: tuple[int, int] | None = None


class Judge(Protocol):
    """Rates answers; has to be safe to ask from several threads."""

    def ask(self, job: Job) -> Reply:
        """One reply; raises JudgeError, or BrokenJudge."""
        ...

    def describe(self) -> dict[str, Any]:
        """What decides the replies, as JSON, without any secret."""
        ...


class ExactJudge:
    """Right if answer and reference are the same words, case, punctuation and articles apart."""

    def ask(self, job: Job) -> Reply:
        """See `Judge.ask`."""
        reference = _words(job.answer)
        return _verdict(job, 5 * all(_words(pred) == reference for pred in _preds(job)))

    def describe(self) -> dict[str, Any]:
        """See `Judge.describe`."""
        return {"id": "exact"}


class StubJudge:
    """Stands in for a judge where there is none: 5 times the share of the reference's distinct
    words that the answer has, rounded down; right from 3 on. To try out a set-up, not a measure."""

    def ask(self, job: Job) -> Reply:
        """See `Judge.ask`."""
        reference = set(_words(job.answer))
        shares = [
            len(reference & set(_words(pred))) / len(reference) if reference else 0.0
            for pred in _preds(job)
        ]
        return _verdict(job, int(5 * min(shares)))

    def describe(self) -> dict[str, Any]:
        """See `Judge.describe`."""
        return {"id": "stub"}


def _preds(job: Job) -> list[str]:
    return [pred for pred in (job.pred, job.pred_2) if pred is not None]


def _words(text: str) -> list[str]:
    return [w for w in re.findall(r"\w+", text.casefold()) if w not in ("a", "an", "the")]


def _verdict(job: Job, score: int) -> Reply:
    assert job.aspect in ASPECTS, job.aspect
    told: dict[str, Any] = {"score": score}
    if job.aspect == "qa":
        told = {"pred": "yes" if score >= 3 else "no", **told}
    return Reply(json.dumps(told))
