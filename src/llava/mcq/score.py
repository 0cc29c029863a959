"""Accuracy of a complete set of results, with nothing left out of the denominator.

Failures and unparsed replies count as wrong. How many there were is always said beside the
accuracy, and accuracy among replies that could be read is given under its own name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STATUSES = ("ok", "unparsed", "decode_error", "gen_error")
Z_95 = 1.959963984540054

Record = Mapping[str, Any]


def wilson(hits: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Score interval of a share (E. B. Wilson, JASA 22, 1927): (low, high), 95 % by default.

    Raises:
      ValueError: no trials.
    """
    if total <= 0:
        raise ValueError("an interval needs at least one question")
    share, z2 = hits / total, z * z
    middle = share + z2 / (2 * total)
    reach = z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    scale = 1 + z2 / total
    # At 0 and 1 rounding would leave the interval beside its own share.
    low = 0.0 if hits == 0 else (middle - reach) / scale
    high = 1.0 if hits == total else (middle + reach) / scale
    return low, high


def score(records: Sequence[Record]) -> dict[str, Any]:
    """All figures of a run.

    Args:
      records: one per question.

    Returns:
      As JSON: `questions`; `statuses` counted; `coverage`, the share of questions that the model
      was asked and replied to; `accuracy` with `low` and `high` (micro, failures wrong);
      `macro`, the mean over tasks of the same; `accuracy_of_parsed` over `parsed` replies;
      `chance` of guessing; `ties` of log-probabilities; `chosen` and `truth`, how often each
      letter was; `tokens`, mean per question asked; `visuals` by source; `tasks`, each with its own
      of these. Of models of several encoders also `fusion`, the mean weight of each, of all
      questions and in each task.

    Raises:
      ValueError: no records.
    """
    if not records:
        raise ValueError("there are no results to score")
    tasks: dict[str, list[Record]] = {}
    for record in records:
        tasks.setdefault(record["task"], []).append(record)
    by_task = {task: _figures(rows) for task, rows in tasks.items()}
    asked = [r for r in records if r["text_tokens"] is not None]
    return {
        **_figures(records),
        "macro": math.fsum(row["accuracy"] for row in by_task.values()) / len(by_task),
        "ties": sum(bool(record["tie"]) for record in records),
        "chosen": _letters(r["prediction"] for r in records if r["prediction"] is not None),
        "truth": _letters(record["answer"] for record in records),
        "tokens": {
            kind: math.fsum(r[f"{kind}_tokens"] for r in asked) / len(asked) if asked else None
            for kind in ("visual", "text")
        },
        "visuals": sources_counted(records),
        "tasks": by_task,
    }


def sources_counted(records: Sequence[Record]) -> dict[str, int]:
    """Questions by source of their visual; "video" only where a model reads frames alone."""
    names = ["asset", "packed", "frames", "none"]
    if any(record["source"] == "video" for record in records):
        names.append("video")
    return {name: sum(record["source"] == name for record in records) for name in names}


def _fusion(records: Sequence[Record]) -> dict[str, Any]:
    """The mean weight of each encoder, where records tell it."""
    told = [record["fusion"] for record in records if record.get("fusion")]
    if not told:
        return {}
    return {"fusion": {name: math.fsum(t[name] for t in told) / len(told) for name in told[0]}}


def _figures(records: Sequence[Record]) -> dict[str, Any]:
    total = len(records)
    statuses = {name: sum(r["status"] == name for r in records) for name in STATUSES}
    correct = sum(bool(record["correct"]) for record in records)
    low, high = wilson(correct, total)
    parsed = statuses["ok"]
    return {
        "questions": total,
        "statuses": statuses,
        "coverage": (statuses["ok"] + statuses["unparsed"]) / total,
        "correct": correct,
        "accuracy": correct / total,
        "low": low,
        "high": high,
        "parsed": parsed,
        "accuracy_of_parsed": correct / parsed if parsed else None,
        "chance": math.fsum(1 / len(record["options"]) for record in records) / total,
        **_fusion(records),
    }


def compare(first: Sequence[Record], second: Sequence[Record]) -> dict[str, Any]:
    """Two runs over the same questions.

    Returns:
      Counts `both`, `neither`, `gained` (wrong, then right), `lost`, `same_choice`; and `p`, of the
      exact two-sided McNemar test that gains and losses are equally likely.

    Raises:
      ValueError: they are not over the same questions.
    """
    pairs = paired(first, second)
    gained = sum(bool(b["correct"]) and not a["correct"] for a, b in pairs)
    lost = sum(bool(a["correct"]) and not b["correct"] for a, b in pairs)
    return {
        "both": sum(bool(a["correct"]) and bool(b["correct"]) for a, b in pairs),
        "neither": sum(not a["correct"] and not b["correct"] for a, b in pairs),
        "gained": gained,
        "lost": lost,
        "same_choice": sum(
            a["prediction"] == b["prediction"] and a["prediction"] is not None for a, b in pairs
        ),
        "p": mcnemar(gained, lost),
    }


def paired(first: Sequence[Record], second: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Records of the same question; raises ValueError unless both runs have the same questions."""
    by_id = {(row["task"], row["id"]): row for row in second}
    same = len(first) == len(second) == len(by_id)
    pairs = []
    for row in first if same else ():
        other = by_id.get((row["task"], row["id"]))
        if other is None or any(other[n] != row[n] for n in ("question", "options", "answer")):
            same = False
            break
        pairs.append((row, other))
    if not same:
        raise ValueError(
            "the two runs are not over the same questions: compare runs of one benchmark"
        )
    return pairs


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p: gains and losses as tosses of a fair coin (Q. McNemar, 1947)."""
    total = gained + lost
    tail = sum(math.comb(total, i) for i in range(min(gained, lost) + 1))
    return min(1.0, tail / 2 ** (total - 1)) if total else 1.0


def table(figures: Mapping[str, Any]) -> str:
    """The figures as lines of text."""
    rows = [*figures["tasks"].items()] if len(figures["tasks"]) > 1 else []
    width = max([len("all (micro)"), *(len(task) for task, _ in rows)])
    lines = [f"{'':{width}}  questions  accuracy  95 % interval   coverage  chance"]
    for task, row in [*rows, ("all (micro)", figures)]:
        lines.append(
            f"{task:{width}}  {row['questions']:9}  {row['accuracy']:8.3f}  "
            f"{row['low']:.3f} to {row['high']:.3f}  {row['coverage']:8.3f}  {row['chance']:6.3f}"
        )
    if rows:
        lines.append(f"{'all (macro)':{width}}  {'':9}  {figures['macro']:8.3f}")
    told = ", ".join(f"{name} {count}" for name, count in figures["statuses"].items())
    lines.append(f"statuses: {told}; failures and unparsed replies count as wrong")
    if figures["statuses"]["ok"] not in (0, figures["questions"]):
        lines.append(
            f"accuracy among the {figures['parsed']} replies that could be read: "
            f"{figures['accuracy_of_parsed']:.3f}"
        )
    for task, row in [*rows, ("all", figures)] if "fusion" in figures else []:
        told = ", ".join(f"{n} {w:.3f}" for n, w in row.get("fusion", {}).items())
        lines.append(f"weights of the encoders, {task}: {told}")
    if figures["ties"]:
        lines.append(f"ties of log-probabilities: {figures['ties']} (the first letter is taken)")
    return "\n".join(lines)


def _letters(options: Iterable[int]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for option in sorted(options):
        letter = chr(ord("A") + option)
        counts[letter] = counts.get(letter, 0) + 1
    return counts
