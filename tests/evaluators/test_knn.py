"""k-NN against a brute-force vote in numpy, and what it says of labels that mean nothing."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from codecvit.evaluators.knn import knn


def data(train=300, test=90, features=16, classes=7, signal=1.0, seed=0):
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(classes, features))
    labels = rng.integers(0, classes, train + test)
    x = signal * directions[labels] + rng.normal(size=(train + test, features))
    x = (x * rng.uniform(0.1, 10, (len(x), 1))).astype(np.float32)
    return x[:train], labels[:train], x[train:], labels[train:]


def brute_force(train, train_labels, test, test_labels, k, temperature, classes):
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    votes = np.zeros((len(test), classes))
    for row, cosine in enumerate(test @ train.T):
        for neighbour in np.argsort(-cosine)[:k]:
            votes[row, train_labels[neighbour]] += np.exp(cosine[neighbour] / temperature)
    order = np.argsort(-votes, axis=1, kind="stable")
    hits = (order == test_labels[:, None]) & (np.take_along_axis(votes, order, axis=1) > 0)
    return hits[:, :1].any(1).mean(), hits[:, :5].any(1).mean()


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (300, 0.07)])
def test_it_equals_a_brute_force_vote(k, temperature):
    train, train_labels, test, test_labels = data()
    expected = brute_force(train, train_labels, test, test_labels, k, temperature, 7)
    found = knn(
        train,
        train_labels,
        test,
        test_labels,
        k=k,
        temperature=temperature,
        num_classes=7,
        chunk=13,
    )
    assert (found["top1"], found["top5"]) == pytest.approx(expected, abs=1e-9)
    assert 0.4 < found["top1"] <= found["top5"]
    assert (found["count"], found["train_count"], found["k"]) == (90, 300, k)


def test_the_weights_of_the_votes_matter():
    """One near neighbour of class 1 against two farther ones of class 0."""
    train = np.array([[1, 0.05], [1, 1], [1, 1.1]], np.float32)
    arguments = (train, np.array([1, 0, 0]), np.array([[1, 0.0]], np.float32), np.array([1]))
    assert knn(*arguments, k=3, temperature=0.07, num_classes=2)["top1"] == 1
    assert knn(*arguments, k=3, temperature=10.0, num_classes=2)["top1"] == 0


def test_a_tiny_temperature_does_not_overflow():
    train, train_labels, test, test_labels = data()
    sharp = knn(train, train_labels, test, test_labels, temperature=1e-4, num_classes=7)
    nearest = knn(train, train_labels, test, test_labels, k=1, num_classes=7)
    assert sharp["top1"] == nearest["top1"]


def test_classes_without_a_vote_are_never_right():
    train = np.eye(2, dtype=np.float32)
    found = knn(train, np.array([0, 1]), train, np.array([2, 2]), num_classes=3)
    assert (found["top1"], found["top5"]) == (0, 0)


def test_fewer_training_rows_than_k_all_vote():
    train, train_labels, test, test_labels = data(train=11)
    found = knn(train, train_labels, test, test_labels, k=20, num_classes=7)
    assert found == knn(train, train_labels, test, test_labels, k=11, num_classes=7)
    assert found["k"] == 11


def test_rows_without_label_neither_vote_nor_count():
    train, train_labels, test, test_labels = data()
    hidden_train, hidden_test = train_labels.copy(), test_labels.copy()
    hidden_train[::3] = -1
    hidden_test[::2] = -1
    found = knn(train, hidden_train, test, hidden_test, num_classes=7)
    keep, kept = hidden_train >= 0, hidden_test >= 0
    expected = knn(train[keep], train_labels[keep], test[kept], test_labels[kept], num_classes=7)
    assert found == expected
    assert (found["count"], found["train_count"]) == (45, 200)


def test_permuted_labels_are_at_chance():
    train, train_labels, test, test_labels = data(train=700, test=700, signal=3.0)
    assert knn(train, train_labels, test, test_labels, num_classes=7)["top1"] > 0.95
    shuffled = [np.random.default_rng(seed).permutation(train_labels) for seed in range(10)]
    found = [knn(train, wrong, test, test_labels, num_classes=7)["top1"] for wrong in shuffled]
    assert abs(np.mean(found) - 1 / 7) < 0.04


def test_it_runs_the_same_where_a_mesh_is_set():
    arguments = data()
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        within = knn(*arguments, num_classes=7)
    assert within == knn(*arguments, num_classes=7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"num_classes": 6}, r"train: labels run from 0 to 6.*num_classes=6"),
        ({"test_labels_M": np.full(90, -1)}, "test: none of the 90 rows"),
        ({"test_labels_M": np.zeros(90)}, "test: labels are float64"),
        ({"test_labels_M": np.zeros(3, int)}, "test: embeddings .* do not fit"),
        ({"test_MD": np.zeros((90, 3))}, "train has 16 features and test 3"),
        ({"test_MD": np.full((90, 16), np.inf)}, "test: some embeddings are not finite"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    names = ("train_ND", "train_labels_N", "test_MD", "test_labels_M")
    arguments = dict(zip(names, data(), strict=True)) | {"num_classes": 7} | change
    with pytest.raises(ValueError, match=message):
        knn(**arguments)
