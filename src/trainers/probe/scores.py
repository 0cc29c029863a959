"""What the passes of a probe find: scores of the held-out part and of the test, baselines.

Shape suffixes: B batch, N examples of a split, C classes, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...evaluators.knn import knn
from ...evaluators.linear_probe import linear_probe
from ...evaluators.outcomes import Outcomes, join, measure, outcomes
from .examples import ProbeData, Split
from .passes import Passes, Seen


class Embeddings:
    """Features of the examples of a split, as far as they could be read.

    Args:
      split: the split.

    Attributes:
      rows: name -> float32 [N, D].
      labels_N: int32, of a data set with one label an example; -1 where there are no features.
    """

    def __init__(self, split: Split) -> None:
        self._targets_NC = split.targets_NC
        self.rows: dict[str, np.ndarray] = {}
        self.labels_N = np.full(len(split.keys), -1, np.int32)

    def add(self, examples_B: np.ndarray, seen: Seen) -> None:
        """Takes over the readable rows of a batch; `examples_B` are the examples of its rows."""
        examples = examples_B[seen.readable]
        for name, rows_BD in seen.features.items():
            known_BD = rows_BD[seen.readable]
            shape = (len(self.labels_N), rows_BD.shape[1])
            self.rows.setdefault(name, np.zeros(shape, np.float32))[examples] = known_BD
        self.labels_N[examples] = self._targets_NC[examples].argmax(axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class TestScores:
    """The test of one head.

    Attributes:
      outcomes: of all N examples of the list.
      seen_N: bool, which of them could be seen in a view at least.
      embeddings: those of the first view; None unless they were asked for.
    """

    outcomes: Outcomes
    seen_N: np.ndarray
    embeddings: Embeddings | None


def held_out_scores(chooser: Passes, heads: Any, data: ProbeData) -> list[dict[str, float]]:
    """The metrics of every head on the held-out part of the training data, the one that counts
    first; an unreadable record counts as wrong."""
    example_of = data.train.examples_of(0)
    parts: list[list[Outcomes]] = []
    for seen in chooser(heads):
        targets_BC = data.train.targets_NC[example_of[seen.index]]
        parts.append([outcomes(data.metric, s, targets_BC, seen.readable) for s in seen.scores])
    return [measure(join(of_head)) for of_head in zip(*parts, strict=True)]


def score_test(views: Sequence[Passes], head: Any, data: ProbeData, embed: bool) -> TestScores:
    """Looks at the test split with one head.

    Args:
      views: passes over the records of each view.
      head: its parameters, with a leading axis of 1.
      data: the data set.
      embed: also keep the features of the first view.

    Returns:
      The outcome of every example, by the mean of its probabilities over the views in which it
      could be read; an example without any counts as wrong.
    """
    N = len(data.test.keys)
    total_NC, count_N = np.zeros((N, data.num_classes), np.float32), np.zeros(N, np.int32)
    embeddings = Embeddings(data.test) if embed else None
    for number, view in enumerate(views):
        example_of, first = data.test.examples_of(number), number == 0
        for seen in view(head, features=embed and first):
            examples = example_of[seen.index]
            total_NC[examples[seen.readable]] += seen.scores[0, seen.readable]
            count_N[examples[seen.readable]] += 1
            if embeddings is not None and first:
                embeddings.add(examples, seen)
    scores_NC = total_NC / np.maximum(count_N, 1)[:, None]
    found = outcomes(data.metric, scores_NC, data.test.targets_NC, count_N > 0)
    return TestScores(found, count_N > 0, embeddings)


def embed_training(everything: Passes, head: Any, data: ProbeData) -> Embeddings:
    """The features of all training records, those of the held-out part among them."""
    embeddings, example_of = Embeddings(data.train), data.train.examples_of(0)
    for seen in everything(head, features=True):
        embeddings.add(example_of[seen.index], seen)
    return embeddings


def baselines(train: Embeddings, test: Embeddings, num_classes: int) -> dict[str, float]:
    """k-NN and linear probe of each kind of features.

    Args:
      train, test: features of both splits.
      num_classes: C.

    Returns:
      "mean_knn_top1" and so on, shares of all test examples: one without features counts as wrong.
    """
    found = {}
    for name, train_ND in train.rows.items():
        rows = (train_ND, train.labels_N, test.rows[name], test.labels_N)
        for probe, classify in (("knn", knn), ("linear", linear_probe)):
            result = classify(*rows, num_classes=num_classes)
            share = result["count"] / len(test.labels_N)
            found[f"{name}_{probe}_top1"] = result["top1"] * share
    return found
