"""Accuracy against tokens: the picture that comparisons of several runs end in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .records import Record
from .score import score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {
    "tokens": "tokens of a question, visual and text",
    "visual_tokens": "visual tokens of a question",
}
"""What may stand on the horizontal axis: entries of `point`."""


def point(records: Sequence[Record]) -> dict[str, float]:
    """What a complete run is on such a curve.

    Args:
      records: one per question.

    Returns:
      As JSON: `accuracy` with `low` and `high` (Wilson), `coverage`, `chance`; `visual_tokens` and
      `text_tokens` (question, options and times), means per question asked, and their sum `tokens`.
    """
    figures = score(records)
    kept = {key: figures[key] for key in ("accuracy", "low", "high", "coverage", "chance")}
    counts = {f"{kind}_tokens": count or 0.0 for kind, count in figures["tokens"].items()}
    return {**kept, **counts, "tokens": sum(counts.values())}


def draw_accuracy(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    tokens: str,
    chance: float,
    names: Sequence[str] | None = None,
) -> Figure:
    """One line with intervals per curve.

    Args:
      curves: points of each by its label, see `point`.
      tokens: what stands on the horizontal axis, a key of AXES.
      chance: accuracy of guessing.
      names: written beside the points of the first curve.
    """
    # Imported here: the figure's own class draws without a window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, points in curves.items():
        accuracy = np.array([at["accuracy"] for at in points])
        ends = np.array([[at["low"], at["high"]] for at in points]).T
        places, reach = [at[tokens] for at in points], np.abs(ends - accuracy)
        axes.errorbar(places, accuracy, yerr=reach, marker="o", capsize=3, label=label)
    for name, at in zip(names or (), next(iter(curves.values())), strict=bool(names)):
        place = (at[tokens], at["accuracy"])
        axes.annotate(name, place, xytext=(6, 6), textcoords="offset points", fontsize=8)
    axes.axhline(chance, color="0.6", linestyle="--", linewidth=1, label="chance")
    axes.set_xlabel(AXES[tokens])
    axes.set_ylabel("accuracy, 95 % interval")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
