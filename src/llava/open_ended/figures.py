"""What judgements come to, with nothing left out of the denominator.

An answer that the model did not give is wrong and has score 0. So has one whose judgement could not
be had or read; how many those are always stands beside, and the mean without them has its own name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..mcq.score import wilson
from .rate import STATUSES

VCG = ("CI", "DO", "CU", "TU", "CO")
DIVERSE = {"caption": "summary", "spatial": "spatial", "reasoning": "reasoning"}
_JUDGED = ("ok", "unanswered")

Record = Mapping[str, Any]


def judged_figures(records: Sequence[Record]) -> dict[str, Any]:
    """All figures of a run.

    Args:
      records: one per judgement.

    Returns:
      As JSON: `judgements`, `statuses` counted, `truncated` scores, `models` that the endpoint
      says answered, `tokens` (read, written) as far as it tells; `first` and `last` date;
      `aspects`, each with `items`, `score` and its standard error, `judged`, `score_of_judged`, and
      for "qa" `yes`, `accuracy`, `low`, `high`, `accuracy_of_judged`; `tasks`, the same for
      each task; `average` of the five aspects of VCGBench, if all are there; `diverse`, caption,
      spatial and reasoning of VCGBench-Diverse: mean of the CI and DO scores of that type.
    """
    aspects = list(dict.fromkeys(record["aspect"] for record in records))
    by_aspect = _by_aspect(records)
    tasks = list(dict.fromkeys(record["task"] for record in records))
    counted = [record["tokens"] for record in records if record["tokens"]]
    dates = [record["date"] for record in records]
    return {
        "judgements": len(records),
        "statuses": {name: sum(r["status"] == name for r in records) for name in STATUSES},
        "truncated": sum(bool(record["truncated"]) for record in records),
        "models": sorted({record["model"] for record in records} - {None}),
        "tokens": [sum(count[k] for count in counted) for k in range(2)] if counted else None,
        "first": min(dates),
        "last": max(dates),
        "aspects": by_aspect,
        "tasks": {task: _by_aspect([r for r in records if r["task"] == task]) for task in tasks},
        "average": (
            math.fsum(by_aspect[name]["score"] for name in VCG) / len(VCG)
            if set(VCG) <= set(aspects)
            else None
        ),
        "diverse": _diverse(records),
    }


def _by_aspect(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    aspects = dict.fromkeys(record["aspect"] for record in records)
    return {name: _figures([r for r in records if r["aspect"] == name]) for name in aspects}


def _figures(records: Sequence[Record]) -> dict[str, Any]:
    scores = [record["score"] or 0 for record in records]
    judged = [record for record in records if record["status"] in _JUDGED]
    total, mean = len(scores), math.fsum(scores) / len(scores)
    spread = math.fsum((score - mean) ** 2 for score in scores)
    told: dict[str, Any] = {
        "items": total,
        "score": mean,
        "error": math.sqrt(spread / (total - 1) / total) if total > 1 else None,
        "judged": len(judged),
        "score_of_judged": (
            math.fsum(r["score"] or 0 for r in judged) / len(judged) if judged else None
        ),
    }
    if records[0]["aspect"] == "qa":
        yes = sum(record["pred"] is True for record in records)
        low, high = wilson(yes, total)
        told.update(
            yes=yes,
            accuracy=yes / total,
            low=low,
            high=high,
            accuracy_of_judged=yes / len(judged) if judged else None,
        )
    return told


def _diverse(records: Sequence[Record]) -> dict[str, float] | None:
    means = {}
    for name, task in DIVERSE.items():
        scores = [
            record["score"] or 0
            for record in records
            if record["task"] == task and record["aspect"] in ("CI", "DO")
        ]
        if scores:
            means[name] = math.fsum(scores) / len(scores)
    return means or None


def judged_table(figures: Mapping[str, Any]) -> str:
    """The figures as lines of text."""
    lines = []
    tasks = figures["tasks"] if len(figures["tasks"]) > 1 else {}
    for label, rows in [*tasks.items(), ("all", figures["aspects"])]:
        for aspect, row in rows.items():
            line = f"{label} {aspect}: score {row['score']:.2f} of {row['items']}"
            if "accuracy" in row:
                line += (
                    f", accuracy {row['accuracy']:.3f} (95 % interval {row['low']:.3f} to "
                    f"{row['high']:.3f})"
                )
            if row["judged"] not in (0, row["items"]):
                line += f"; of the {row['judged']} judged {row['score_of_judged']:.2f}"
            lines.append(line)
    if figures["average"] is not None:
        lines.append(f"average of {', '.join(VCG)}: {figures['average']:.2f}")
    if figures["diverse"]:
        told = ", ".join(f"{name} {mean:.2f}" for name, mean in figures["diverse"].items())
        lines.append(f"by type (CI and DO): {told}")
    told = ", ".join(f"{name} {count}" for name, count in figures["statuses"].items())
    lines.append(f"statuses: {told}; all but ok count as no, score 0")
    if figures["truncated"]:
        lines.append(f"scores with a fraction, which was cut off: {figures['truncated']}")
    if figures["tokens"]:
        lines.append("tokens of the judge: {} read, {} written".format(*figures["tokens"]))
    return "\n".join(lines)
