"""Mean average precision against numbers worked out by hand after the authors' script."""

from __future__ import annotations

import numpy as np
import pytest

from codecvit.evaluators.average_precision import mean_average_precision

SCORES = np.array(
    [
        [0.9, 0.1, 0.5],
        [0.8, 0.7, 0.5],
        [0.7, 0.2, 0.5],
        [0.6, 0.9, 0.5],
        [0.5, 0.3, 0.5],
    ]
)
POSITIVE = np.array(
    [
        [1, 0, 0],
        [0, 1, 0],
        [1, 0, 1],
        [0, 0, 1],
        [1, 1, 0],
    ],
    bool,
)


def test_golden():
    found = mean_average_precision(SCORES, POSITIVE)
    # Class 0: hits at ranks 1, 3, 5. Class 1, order 3 1 4 2 0: ranks 2, 3.
    # Class 2, all equal: the order of the examples, ranks 3, 4.
    expected = [
        (1 + 2 / 3 + 3 / 5) / 3,
        (1 / 2 + 2 / 3) / 2,
        (1 / 3 + 2 / 4) / 2,
    ]
    np.testing.assert_allclose(found.per_class_C, expected, rtol=1e-12)
    assert found.mean == pytest.approx(np.mean(expected))


def test_an_example_without_labels_ranks_last():
    positive = POSITIVE.copy()
    positive[3] = False  # it led class 1
    found = mean_average_precision(SCORES, positive)
    # Class 0, order 0 1 2 4 3: ranks 1, 3, 4. Class 1, order 1 4 2 0 3: ranks 1, 2.
    np.testing.assert_allclose(found.per_class_C[:2], [(1 + 2 / 3 + 3 / 4) / 3, 1.0])


def test_a_missing_prediction_ranks_last():
    scores = SCORES.copy()
    scores[0] = -np.inf
    found = mean_average_precision(scores, POSITIVE)
    # Class 0, order 1 2 3 4 0: ranks 2, 4, 5.
    assert found.per_class_C[0] == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 3)
    assert found.mean < mean_average_precision(SCORES, POSITIVE).mean


def test_classes_without_positives_are_left_out_of_the_mean():
    wider = np.concatenate([SCORES, SCORES[:, :1]], axis=1)
    none = np.concatenate([POSITIVE, np.zeros((5, 1), bool)], axis=1)
    found = mean_average_precision(wider, none)
    assert np.isnan(found.per_class_C[3])
    assert found.mean == mean_average_precision(SCORES, POSITIVE).mean


def test_bounds():
    rng = np.random.default_rng(0)
    positive = rng.random((200, 7)) < 0.2
    assert mean_average_precision(positive + 0.0, positive).mean == 1.0
    chance = mean_average_precision(rng.random((200, 7)), positive).mean
    assert 0.15 < chance < 0.3


@pytest.mark.parametrize(
    ("scores", "positive", "message"),
    [
        (SCORES[:4], POSITIVE, "do not fit"),
        (SCORES, POSITIVE.astype(int), "labels int64"),
        (np.where(SCORES == 0.2, np.nan, SCORES), POSITIVE, r"scores\[2, 1\] is NaN"),
        (SCORES, np.zeros_like(POSITIVE), "nothing to score"),
    ],
)
def test_what_cannot_be_scored_is_named(scores, positive, message):
    with pytest.raises(ValueError, match=message):
        mean_average_precision(scores, positive)
