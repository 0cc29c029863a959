"""Accuracy against tokens: the picture that comparisons of several runs end in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_accuracy(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    tokens: str,
    chance: float,
    names: Sequence[str] | None = None,
) -> Figure:
    """One line with intervals per curve.

    Args:
      curves: points of each by its label: `accuracy`, `low`, `high` in 0..1, and `tokens`.
      tokens: the points' entry on the horizontal axis, such as "visual_tokens".
      chance: accuracy of guessing.
      names: written beside the points of the first curve.
    """
    # Imported here: the figure's own class draws without a window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, points in curves.items():
        accuracy = np.array([point["accuracy"] for point in points])
        ends = np.array([[point["low"], point["high"]] for point in points]).T
        places, reach = [point[tokens] for point in points], np.abs(ends - accuracy)
        axes.errorbar(places, accuracy, yerr=reach, marker="o", capsize=3, label=label)
    for name, point in zip(names or (), next(iter(curves.values())), strict=bool(names)):
        place = (point[tokens], point["accuracy"])
        axes.annotate(name, place, xytext=(6, 6), textcoords="offset points", fontsize=8)
    axes.axhline(chance, color="0.6", linestyle="--", linewidth=1, label="chance")
    wanted = {"tokens": "tokens of a question, visual and text"}
    axes.set_xlabel(wanted.get(tokens, "visual tokens of a question"))
    axes.set_ylabel("accuracy, 95 % interval")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
