"""Mean average precision of multi-label predictions, as the authors of Charades score it.

Their script is Charades_v1_classify.m of the Charades download; Charades-Ego is scored likewise.

Shape suffixes: N examples, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class AveragePrecision(NamedTuple):
    """Average precision over classes.

    Attributes:
      mean: over the classes that have a positive example; 0..1.
      per_class_C: float64; NaN where no example is positive.
    """

    mean: float
    per_class_C: np.ndarray


def mean_average_precision(scores_NC: np.ndarray, positive_NC: np.ndarray) -> AveragePrecision:
    """Mean over classes of AP = mean over the positives of the precision at their ranks.

    AP_c = 1/P_c * sum over positives i of (positives ranked at or above i) / (rank of i), with the
    examples in falling order of their score for class c; equal scores keep the order of the
    examples, as MATLAB's sort does. There is no interpolation. An example without any label ranks
    below all others in every class, and so does a prediction that is missing: give it scores of
    -inf.

    The script's mean over classes is NaN where a class has no positive example. Every class of the
    official test lists has some; for other lists such classes are left out of the mean.

    Args:
      scores_NC: higher is likelier; -inf for examples without a prediction.
      positive_NC: bool, the labels.

    Returns:
      The mean and the average precision of each class.

    Raises:
      ValueError: shapes that do not fit, a score that is NaN, or no positive at all.
    """
    scores_NC, positive_NC = np.asarray(scores_NC, np.float64), np.asarray(positive_NC)
    if scores_NC.ndim != 2 or scores_NC.shape != positive_NC.shape or positive_NC.dtype != bool:
        raise ValueError(
            f"scores {list(scores_NC.shape)} and labels {positive_NC.dtype} "
            f"{list(positive_NC.shape)} do not fit: give float and bool [examples, classes]"
        )
    if np.isnan(scores_NC).any():
        row, column = np.argwhere(np.isnan(scores_NC))[0]
        raise ValueError(f"scores[{row}, {column}] is NaN: -inf stands for a missing prediction")
    if not positive_NC.any():
        raise ValueError("labels: no example has any, so there is nothing to score")
    ranked_NC = np.where(positive_NC.any(axis=1, keepdims=True), scores_NC, -np.inf)
    order_NC = np.argsort(-ranked_NC, axis=0, kind="stable")
    hits_NC = np.take_along_axis(positive_NC, order_NC, axis=0)
    precision_NC = np.cumsum(hits_NC, axis=0) / np.arange(1, len(hits_NC) + 1)[:, None]
    positives_C = hits_NC.sum(axis=0)
    total_C = (precision_NC * hits_NC).sum(axis=0)
    per_class_C = np.full(len(positives_C), np.nan)
    np.divide(total_C, positives_C, out=per_class_C, where=positives_C > 0)
    return AveragePrecision(float(np.nanmean(per_class_C)), per_class_C)
