"""What the evaluators share: the rows that carry a label, a held-out part of them, accuracies from
ranks.

Shapes: N or M rows, Y classes.
"""

from __future__ import annotations

import numpy as np

Metrics = dict[str, float | int]


def labelled_rows(
    name: str, x_ND: np.ndarray, labels_N: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose label is not -1.

    Args:
      name: what an error calls the rows, "train" or "test".
      x_ND: embeddings.
      labels_N: integers in [-1, num_classes).
      num_classes: number of classes.

    Returns:
      float32 rows and their int32 labels.

    Raises:
      ValueError: shapes that do not fit, a label out of range, no labelled row, a row that is not
        finite.
    """
    x_ND, labels_N = np.asarray(x_ND, np.float32), np.asarray(labels_N)
    if x_ND.ndim != 2 or labels_N.shape != (len(x_ND),):
        raise ValueError(
            f"{name}: embeddings {x_ND.shape} and labels {labels_N.shape} do not fit; "
            "give [rows, features] and [rows]"
        )
    if not np.issubdtype(labels_N.dtype, np.integer):
        raise ValueError(f"{name}: labels are {labels_N.dtype}; give integers")
    if len(labels_N) and not -1 <= labels_N.min() <= labels_N.max() < num_classes:
        raise ValueError(
            f"{name}: labels run from {labels_N.min()} to {labels_N.max()}; with "
            f"num_classes={num_classes} they must lie in [-1, {num_classes - 1}]"
        )
    keep_N = labels_N >= 0
    if not keep_N.any():
        raise ValueError(f"{name}: none of the {len(labels_N)} rows has a label")
    x_ND, labels_N = x_ND[keep_N], labels_N[keep_N].astype(np.int32)
    if not np.isfinite(x_ND).all():
        raise ValueError(f"{name}: some embeddings are not finite: has the training diverged?")
    return x_ND, labels_N


def ranks_to_metrics(rank_M: np.ndarray) -> Metrics:
    """Accuracies from the number of classes that were ranked before the true one.

    Returns:
      "top1", "top5" (with 5 classes or fewer the share of rows that were ranked at all) and
      "count", the rows.
    """
    return {
        "top1": float(np.mean(rank_M < 1)),
        "top5": float(np.mean(rank_M < 5)),
        "count": len(rank_M),
    }


def true_class_ranks(scores_MY: np.ndarray, labels_M: np.ndarray) -> np.ndarray:
    """How many classes are ranked before the true one, int [M]; ties go to the lower class."""
    true_M1 = np.take_along_axis(scores_MY, labels_M[:, None], axis=1)
    lower_class_MY = np.arange(scores_MY.shape[1]) < labels_M[:, None]
    return ((scores_MY > true_M1) | ((scores_MY == true_M1) & lower_class_MY)).sum(axis=1)


def held_out(labels_N: np.ndarray, seed: int, share: float) -> np.ndarray:
    """A share of each class as a mask [N]: at least one row, never the last one of a class.

    Raises:
      ValueError: no class has two rows.
    """
    generator = np.random.default_rng(seed)
    held_out_N = np.zeros(len(labels_N), bool)
    for rows in (np.flatnonzero(labels_N == label) for label in np.unique(labels_N)):
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        held_out_N[generator.permutation(rows)[:count]] = True
    if not held_out_N.any():
        raise ValueError(
            "no class has two labelled training rows, so none can be held out: label more rows, or "
            "give the linear probe one l2 candidate"
        )
    return held_out_N
