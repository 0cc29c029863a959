"""How the examples of a test came out, kept example by example, so that a metric can be taken of
all of them or of a bootstrap's draw.

Shapes: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .average_precision import mean_average_precision
from .knn import UNRANKED
from .labelled import ranks_to_metrics, true_class_ranks

Outcomes = dict[str, np.ndarray]
"""`rank` int32 [N], classes ranked before the true one; or, for several labels an example,
`scores` float32 [N, C] and `targets` bool [N, C]."""


def outcomes(
    metric: str, scores_NC: np.ndarray, targets_NC: np.ndarray, seen_N: np.ndarray
) -> Outcomes:
    """What is kept of some examples.

    Args:
      metric: "top1" (one label an example) or "mean_average_precision".
      scores_NC: probabilities.
      targets_NC: bool, the labels of each example.
      seen_N: bool, False for an example that the classifier could not see: it counts as wrong. So
        does one whose scores are not finite.

    Returns:
      Arrays of N rows.
    """
    seen_N = seen_N & np.isfinite(scores_NC).all(axis=1)
    if metric == "top1":
        rank_N = true_class_ranks(scores_NC, targets_NC.argmax(axis=1))
        return {"rank": np.where(seen_N, rank_N, UNRANKED).astype(np.int32)}
    scores_NC = np.where(seen_N[:, None], scores_NC, -np.inf).astype(np.float32)
    return {"scores": scores_NC, "targets": targets_NC}


def join(parts: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of several batches as one."""
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def measure(found: Outcomes) -> dict[str, float]:
    """The metrics of some examples in 0..1, the one that counts first: top1 and top5, or
    mean_average_precision."""
    if "rank" in found:
        ranked = ranks_to_metrics(found["rank"])
        return {key: float(ranked[key]) for key in ("top1", "top5")}
    return {
        "mean_average_precision": mean_average_precision(found["scores"], found["targets"]).mean
    }
