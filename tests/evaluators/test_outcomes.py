"""Outcomes of test examples: their metrics and intervals."""

import numpy as np
import pytest

from codecvit.evaluators.intervals import bootstrap
from codecvit.evaluators.knn import UNRANKED
from codecvit.evaluators.outcomes import join, measure, outcomes

SCORES = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.9, 0.1, 0.0]], np.float32)
EVERYONE = np.ones(4, bool)


def test_one_label_an_example():
    targets = np.eye(3, dtype=bool)[[0, 0, 1, 0]]
    found = outcomes("top1", SCORES, targets, EVERYONE)
    assert found["rank"].tolist() == [0, 1, 2, 0]  # of equal scores the lower class goes first
    assert measure(found) == {"top1": 0.5, "top5": 1.0}


def test_what_was_not_seen_or_is_not_finite_is_wrong():
    targets = np.eye(3, dtype=bool)[[0, 0, 0, 0]]
    scores = np.where(np.arange(4)[:, None] == 3, np.nan, SCORES)
    found = outcomes("top1", scores, targets, np.array([False, True, True, True]))
    assert found["rank"].tolist() == [UNRANKED, 1, 1, UNRANKED]
    assert measure(found) == {"top1": 0.0, "top5": 0.5}


def test_several_labels_an_example():
    targets = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [1, 0, 0]], bool)
    found = outcomes("mean_average_precision", SCORES, targets, EVERYONE)
    # Class 0: ranks 1, 2, 3 of its positives; class 1: 1, 3 (behind the equal 0.3); class 2: 2.
    expected = np.mean([1, np.mean([1, 2 / 3]), 1 / 2])
    assert measure(found)["mean_average_precision"] == pytest.approx(expected)
    unseen = outcomes("mean_average_precision", SCORES, targets, ~targets[:, 2])
    expected = np.mean([np.mean([1, 2 / 2, 3 / 4]), np.mean([1, 2 / 2]), 1 / 4])
    assert measure(unseen)["mean_average_precision"] == pytest.approx(expected)
    halves = [{k: v[part] for k, v in found.items()} for part in (slice(0, 1), slice(1, 4))]
    assert measure(join(halves)) == measure(found)


def test_the_interval_of_a_share_is_the_binomial_one():
    right = np.arange(400) < 100
    low, high = bootstrap(lambda draw: right[draw].mean(), 400)
    deviation = np.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - 1.96 * deviation, abs=0.006)
    assert high == pytest.approx(0.25 + 1.96 * deviation, abs=0.006)
    assert bootstrap(lambda draw: right[draw].mean(), 400) == (low, high)


def test_a_pair_of_runs_is_drawn_together():
    """Equal runs differ by nothing, whatever is drawn."""
    right = np.arange(50) % 3 == 0
    assert bootstrap(lambda draw: right[draw].mean() - right[draw].mean(), 50) == (0, 0)
