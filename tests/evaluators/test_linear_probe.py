"""The linear probe against scikit-learn, its minimum, and what may choose the penalty."""

import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from codecvit.evaluators import linear_probe as module
from codecvit.evaluators.linear_probe import (
    fit_logistic,
    linear_probe,
    penalised_loss,
    standardise,
)


def data(train=320, test=400, features=192, classes=8, signal=0.25, seed=0):
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(classes, features))
    labels = rng.integers(0, classes, train + test)
    x = signal * directions[labels] + rng.normal(size=(train + test, features))
    x = (x * rng.uniform(0.01, 10, features) + rng.normal(size=features)).astype(np.float32)
    return x[:train], labels[:train], x[train:], labels[train:]


def even(count):
    return np.full(count, 1 / count, np.float32)


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_the_minimum_is_that_of_scikit_learn(l2):
    sklearn = pytest.importorskip("sklearn.linear_model")
    train, labels, test, test_labels = data()
    x, z = standardise(train, train), standardise(test, train)
    reference = sklearn.LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=10_000)
    reference.fit(x.astype(np.float64), labels)
    there = {"kernel": reference.coef_.T, "bias": reference.intercept_}
    here = fit_logistic(x, labels, 8, l2)
    loss_here, loss_there = (
        float(penalised_loss(w, x, labels, even(len(x)), l2)) for w in (here, there)
    )
    assert loss_here == pytest.approx(loss_there, rel=1e-3, abs=1e-5)
    agree = reference.predict(z) == np.argmax(z @ here["kernel"] + here["bias"], axis=1)
    assert agree.mean() >= 0.99
    found = linear_probe(train, labels, test, test_labels, num_classes=8, l2_candidates=(l2,))
    assert found["top1"] == pytest.approx(reference.score(z, test_labels), abs=0.01)


def test_the_gradient_vanishes_at_the_minimum_and_a_step_aside_costs():
    train, labels, _, _ = data()
    x = standardise(train, train)
    fit = fit_logistic(x, labels, 8, 0.01)
    value, grad = jax.value_and_grad(penalised_loss)(fit, x, labels, even(len(x)), 0.01)
    assert max(float(abs(g).max()) for g in jax.tree.leaves(grad)) < 1e-4
    rng = np.random.default_rng(0)
    for _ in range(5):
        aside = jax.tree.map(lambda w: w + 0.01 * rng.normal(size=w.shape), fit)
        assert penalised_loss(aside, x, labels, even(len(x)), 0.01) > value


def test_a_stronger_penalty_shrinks_the_kernel_but_never_the_bias():
    train, labels, _, _ = data()
    labels = np.where(labels < 5, 0, labels)  # uneven classes: the bias has something to say
    x = standardise(train, train)
    fits = [fit_logistic(x, labels, 8, l2) for l2 in (1e-3, 1e-1, 1e3)]
    norms = [float(np.linalg.norm(fit["kernel"])) for fit in fits]
    assert norms[0] > 2 * norms[1] > 20 * norms[2]
    bias = fits[2]["bias"]
    share = np.exp(bias) / np.exp(bias).sum()
    expected = np.bincount(labels, minlength=8) / len(labels)
    np.testing.assert_allclose(share, expected, atol=2e-3)


def test_rows_of_weight_zero_do_not_matter():
    train, labels, _, _ = data(train=200, features=20)
    x = standardise(train, train)
    weight = (np.arange(200) < 150).astype(float)
    masked, alone = (
        fit_logistic(x, labels, 8, 0.1, weight),
        fit_logistic(x[:150], labels[:150], 8, 0.1),
    )
    np.testing.assert_allclose(masked["kernel"], alone["kernel"], atol=1e-3)


def test_scale_and_offset_of_the_features_do_not_matter():
    train, labels, test, test_labels = data()
    scale = np.geomspace(1e-3, 1e3, 192).astype(np.float32)
    plain = linear_probe(train, labels, test, test_labels, num_classes=8)
    other = linear_probe(
        train * scale + 3 * scale, labels, test * scale + 3 * scale, test_labels, num_classes=8
    )
    assert other["l2"] == plain["l2"]
    assert other["top1"] == pytest.approx(plain["top1"], abs=0.01)


def test_constant_features_do_no_harm():
    train, labels, test, test_labels = data()
    plain = linear_probe(train, labels, test, test_labels, num_classes=8)
    train, test = (
        np.concatenate([x, np.full((len(x), 1), 0.1, np.float32)], axis=1) for x in (train, test)
    )
    other = linear_probe(train, labels, test, test_labels, num_classes=8)
    assert other["top1"] == pytest.approx(plain["top1"], abs=0.01)


def test_the_test_rows_choose_nothing(monkeypatch):
    """Each fit and the chosen strength are the same whatever the test rows are."""
    train, labels, test, test_labels = data()
    fits = []
    original = module.fit_logistic

    def watched(x, y, classes, l2, weight=None):
        fits.append((l2, len(x), None if weight is None else int(weight.sum())))
        return original(x, y, classes, l2, weight)

    monkeypatch.setattr(module, "fit_logistic", watched)
    one = linear_probe(train, labels, test, test_labels, num_classes=8)
    seen, fits[:] = list(fits), []
    other = linear_probe(train, labels, -test[:50], test_labels[::-1][:50], num_classes=8)
    assert fits == seen
    assert one["l2"] == other["l2"]
    # The sweep fits four fifths of the training rows, the last fit all of them.
    assert [kept for _, _, kept in seen[:-1]] == [256] * 5
    assert seen[-1] == (one["l2"], 320, None)


def test_a_test_row_is_judged_alone():
    """Statistics of the test rows enter nowhere: parts of them add up to the whole."""
    train, labels, test, test_labels = data()
    test = test + 2 * np.sign(test_labels[:, None] - 3.5)  # the parts differ in their mean
    order = np.argsort(test_labels, kind="stable")
    parts = [
        linear_probe(train, labels, test[rows], test_labels[rows], num_classes=8)
        for rows in (order, order[:200], order[200:])
    ]
    whole, first, second = (part["loss"] for part in parts)
    assert whole == pytest.approx((first + second) / 2, rel=1e-5)


def test_noisy_features_get_a_stronger_penalty_than_clean_ones():
    noisy = linear_probe(*data(train=160, signal=0.15), num_classes=8)
    clean = linear_probe(*data(train=160, signal=2.0), num_classes=8)
    assert noisy["l2"] > clean["l2"]
    weakest = linear_probe(*data(train=160, signal=0.15), num_classes=8, l2_candidates=(1e-4,))
    assert noisy["loss"] < weakest["loss"]


def test_the_seed_alone_decides():
    arguments = data()
    one, again = (linear_probe(*arguments, num_classes=8, seed=3) for _ in range(2))
    assert one == again
    labels = arguments[1]
    held = [module.held_out(labels, seed, module.HELD_OUT) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(held[0], held[1])
    assert (held[0] != held[2]).any()


def test_the_held_out_part_is_a_fifth_of_each_class_and_never_all_of_it():
    labels = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    held = module.held_out(labels, 0, module.HELD_OUT)
    assert np.bincount(labels[held], minlength=4).tolist() == [20, 2, 1, 0]


def test_permuted_labels_are_at_chance():
    train, labels, test, test_labels = data(train=600, test=800, features=32, signal=1.0)
    shuffled = np.random.default_rng(3).permutation(labels)
    assert linear_probe(train, labels, test, test_labels, num_classes=8)["top1"] > 0.95
    found = linear_probe(train, shuffled, test, test_labels, num_classes=8)
    assert abs(found["top1"] - 1 / 8) < 0.05
    assert found["loss"] < 1.2 * np.log(8), "a sweep that works is not confident about nothing"


def test_rows_without_label_are_ignored():
    train, labels, test, test_labels = data()
    hidden, hidden_test = labels.copy(), test_labels.copy()
    hidden[::4] = -1
    hidden_test[::2] = -1
    found = linear_probe(train, hidden, test, hidden_test, num_classes=8)
    keep, kept = hidden >= 0, hidden_test >= 0
    assert found == linear_probe(
        train[keep], labels[keep], test[kept], test_labels[kept], num_classes=8
    )
    assert (found["count"], found["train_count"]) == (200, 240)


def test_it_runs_the_same_where_a_mesh_is_set():
    arguments = data(features=24)
    with jax.set_mesh(jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))):
        within = linear_probe(*arguments, num_classes=8)
    assert within == pytest.approx(linear_probe(*arguments, num_classes=8), rel=1e-5)


def test_a_small_set_is_fast_compilation_included():
    arguments = data(features=191)  # a shape that no other test has compiled
    start = time.perf_counter()
    linear_probe(*arguments, num_classes=8)
    assert time.perf_counter() - start < 10  # 1.5 s on two idle cores


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l2_candidates": ()}, "l2_candidates"),
        ({"l2_candidates": (-1.0, 1.0)}, "l2_candidates"),
        ({"num_classes": 4}, "train: labels run from 0 to 7"),
        ({"train_labels_N": np.full(320, -1)}, "train: none of the 320 rows"),
        ({"train_labels_N": np.where(np.arange(320) == 0, 0, -1)}, "one l2 candidate"),
        ({"test_MD": np.zeros((400, 3))}, "train has 192 features and test 3"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    names = ("train_ND", "train_labels_N", "test_MD", "test_labels_M")
    arguments = dict(zip(names, data(), strict=True)) | {"num_classes": 8} | change
    with pytest.raises(ValueError, match=message):
        linear_probe(**arguments)
