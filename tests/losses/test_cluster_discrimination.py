"""The sharded, chunked loss against a dense float64 reference, value and gradients."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_head import (
    CLASSES,
    FILTER,
    B,
    assert_equal_to_reference,
    on_mesh,
    problem,
    reference,
    value_and_grads,
)

from codecvit.losses import cluster_discrimination


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize("shape", [None, (1,), (2,), (8,), (4, 2)])
def test_equals_dense_reference(shape, chunks, num_labels):
    e, w, y, weights = problem(num_labels)
    want = reference(e, w, y, weights, CLASSES)
    cosine = want[3]
    assert not ((cosine > FILTER - 0.01) & (cosine < FILTER + 0.01)).any()  # no tie at the filter
    targets = np.take_along_axis(cosine, np.maximum(y, 0), 1)
    assert (targets[:, 0] > FILTER).sum() == 3 and (cosine > FILTER).sum() == 5
    with on_mesh(shape):
        got = value_and_grads(e, w, y, weights, chunks=chunks)
    assert_equal_to_reference(got, want)
    assert not got[3][CLASSES:].any()  # padded centres


def test_padded_centres_are_never_counted():
    e, w, y, weights = problem(3)
    w[CLASSES:] = e[:3]  # cosine 1 with three samples, below and above the filter
    for threshold in (FILTER, 2.0):
        small = value_and_grads(e, w[:CLASSES], y, weights, filter_threshold=threshold)
        with on_mesh((8,)):
            padded = value_and_grads(e, w, y, weights, filter_threshold=threshold)
        np.testing.assert_allclose(padded[0], small[0], rtol=1e-6)
        for name, value in small[1].items():
            np.testing.assert_allclose(padded[1][name], value, rtol=1e-5, err_msg=name)


def test_gradient_is_that_of_the_reported_value():
    e, w, y, weights = problem(3, seed=1)
    _, _, d_e, d_w = value_and_grads(e, w, y, weights)
    rng = np.random.default_rng(2)
    for _ in range(3):
        u, v = rng.normal(size=e.shape).astype(np.float32), rng.normal(size=w.shape) * 0.01
        v = v.astype(np.float32)
        step = 1e-3  # moves no cosine over the filter: the nearest is 0.05 away
        up = value_and_grads(e + step * u, w + step * v, y, weights)[0]
        down = value_and_grads(e - step * u, w - step * v, y, weights)[0]
        slope = (d_e * u).sum() + (d_w * v).sum()
        np.testing.assert_allclose((up - down) / (2 * step), slope, rtol=0.02)


def test_filtered_class_counts_as_one_and_gets_no_gradient():
    """Two classes: the target at cosine 0, the other at cosine 0.9."""
    e = np.array([[1.0, 0, 0]], np.float32)
    w = np.array([[0, 1.0, 0], [0.9, 0, np.sqrt(0.19)]], np.float32)
    y = np.array([[0]])
    loss, metrics, _, d_w = value_and_grads(e, w, y, np.ones(1), num_classes=2)
    np.testing.assert_allclose(loss, np.log1p(np.exp(64 * 0.3)), rtol=1e-6)
    assert not d_w[1].any() and d_w[0].any()
    assert metrics["filtered"] == 0.5
    np.testing.assert_allclose(metrics["hardest_negative"], 0.9, rtol=1e-6)


def test_mean_over_labels_then_weighted_mean_over_samples():
    e, w, y, weights = problem(3)

    def each(column, i):
        one = np.full_like(y, -1)
        one[i, 0] = y[i, column]
        return value_and_grads(e, w, one, np.ones(B))[0]

    keep = [0, 6, 7, 10]  # row 6 has two labels, row 7 none
    per_sample = [np.mean([each(m, i) for m in range(3) if y[i, m] >= 0] or [0]) for i in keep]
    share = np.where([y[i].max() >= 0 for i in keep], weights[keep], 0)
    mask = np.isin(np.arange(B), keep)
    total = value_and_grads(e, w, y, np.where(mask, weights, 0))[0]
    np.testing.assert_allclose(total, np.average(per_sample, weights=share), rtol=1e-5)


def test_samples_without_weight_or_label_change_nothing():
    e, w, y, weights = problem(3)
    changed = e.copy()
    changed[3] = 0  # weight 0: an unreadable record is all zeros
    changed[7] = 100  # no label
    with on_mesh((8,)):
        before = value_and_grads(e, w, y, weights)
        after = value_and_grads(changed, w, y, weights)
    assert before[0] == after[0]
    for a, b in zip(before[2:], after[2:], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
    assert not after[2][[3, 7]].any()
    for name, value in before[1].items():
        assert value == after[1][name], name
    nothing = value_and_grads(e, w, y, np.zeros(B))
    assert nothing[0] == 0 and not nothing[2].any() and not nothing[3].any()


def test_scale_64_stays_finite_at_the_extremes():
    e = np.eye(8, dtype=np.float32)
    w = np.concatenate([e, -e])
    for y in (np.arange(8), np.arange(8) + 8):  # cosine 1 and cosine -1 with the target
        labels = y[:, None]
        want = reference(e, w, labels, np.ones(8), 16)
        got = value_and_grads(e, w, labels, np.ones(8), num_classes=16)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)
        assert np.isfinite(got[2]).all() and np.isfinite(got[3]).all()
    with pytest.raises(ValueError, match="scale = 80"):
        value_and_grads(e, w, labels, np.ones(8), num_classes=16, scale=80.0)


def test_no_cancellation_when_a_target_dominates():
    """exp(64 * 0.7) is 1e13 times the rest: subtracting it from a full sum would lose the loss."""
    rng = np.random.default_rng(0)
    e = rng.normal(size=(8, 64)).astype(np.float32)
    w = rng.normal(size=(32, 64)).astype(np.float32) * 0.1
    unit = e / np.linalg.norm(e, axis=1, keepdims=True)
    w[:8] = 0.7 * unit + 0.7 * np.roll(unit, 1, 0)
    y = np.arange(8)[:, None]
    want = reference(e, w, y, np.ones(8), 32, margin=0.0)
    got = value_and_grads(e, w, y, np.ones(8), num_classes=32, margin=0.0)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4)


def test_bfloat16_embeddings_keep_float32_logits():
    e, w, y, weights = problem(3)
    want = value_and_grads(e, w, y, weights)
    got = value_and_grads(e.astype(jnp.bfloat16), w, y, weights)
    assert got[2].dtype == jnp.bfloat16 and got[3].dtype == np.float32
    assert got[0] != want[0]
    np.testing.assert_allclose(got[0], want[0], rtol=2e-2)


@pytest.mark.parametrize("rate", [1.0, 0.99])
def test_bfloat16_logits_are_sums_in_float32(rate):
    """Unit vectors that bfloat16 holds exactly, cosines that it does not: near 0.3."""
    rng = np.random.default_rng(0)
    e, w = (rng.choice([-1.0, 1.0], (rows, 4096)).astype(np.float32) for rows in (8, 16))
    for i in range(8):  # agrees with its target in 65 % of the signs and a few
        w[i] = np.where(np.arange(4096) < 2662 + i, e[i], -e[i])
    y, key = np.arange(8)[:, None], jax.random.key(0)
    want = reference(e, w, y, np.ones(8), 16)
    targets = want[3][np.arange(8), np.arange(8)]
    assert (targets.astype(jnp.bfloat16) != targets).sum() > 3
    options = {"num_classes": 16, "sample_rate": rate, "chunks": 2}
    got = value_and_grads(e.astype(jnp.bfloat16), w, y, np.ones(8), key, **options)
    np.testing.assert_allclose(got[0], want[0], rtol=2e-6)


def test_bfloat16_gradients_are_no_worse_in_many_chunks():
    rng = np.random.default_rng(0)
    e = rng.normal(size=(16, 128)).astype(jnp.bfloat16)
    w = rng.normal(size=(4096, 128)).astype(np.float32)
    y = rng.integers(0, 4096, (16, 4))
    d_e = reference(e.astype(np.float32), w, y, np.ones(16), 4096)[1]
    wrong = {}
    for chunks in (1, 64):
        got = value_and_grads(e, w, y, np.ones(16), num_classes=4096, chunks=chunks)[2]
        wrong[chunks] = np.linalg.norm(got.astype(np.float64) - d_e) / np.linalg.norm(d_e)
    assert wrong[1] < 0.01 and wrong[64] < 1.2 * wrong[1]


def test_metrics():
    e, w, y, weights = problem(1)
    cosine = reference(e, w, y, weights, CLASSES)[3]
    share = np.where(y[:, 0] >= 0, weights, 0)
    share = share / share.sum()
    target = np.take_along_axis(cosine, np.maximum(y, 0), 1)[:, 0]
    negatives = cosine.copy()
    negatives[np.arange(B), np.maximum(y[:, 0], 0)] = -1
    with on_mesh((4, 2)):
        metrics = value_and_grads(e, w, y, weights, chunks=2)[1]
    np.testing.assert_allclose(metrics["target_cosine"], (share * target).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["hardest_negative"], share @ negatives.max(1), rtol=1e-5)
    filtered = share @ (negatives > FILTER).mean(1)
    assert filtered > 0
    np.testing.assert_allclose(metrics["filtered"], filtered, rtol=1e-5)


def test_sizes_that_do_not_divide_are_named():
    e, w, y, weights = problem(1)
    with pytest.raises(ValueError, match=r"centres have 61 rows.*multiple of 2"):
        value_and_grads(e, w[:61], y, weights, chunks=2)
    with on_mesh((8,)), pytest.raises(ValueError, match=r"embeddings have 15 rows.*multiple of 8"):
        value_and_grads(e[:15], w, y[:15], weights[:15])
    with pytest.raises(ValueError, match="num_classes = 65"):
        value_and_grads(e, w, y, weights, num_classes=65)


def test_collectives():
    """One gather of embeddings and its reduce-scatter; no logits travel between devices."""
    e, w, y, weights = problem(3)
    with on_mesh((8,)):
        sharding = jax.NamedSharding(
            jax.sharding.get_mesh(), jax.sharding.PartitionSpec(("replica",))
        )
        e, w = jax.device_put((e, w), sharding)

        def loss(e, w):
            return cluster_discrimination(e, w, y, num_classes=CLASSES, weights_B=weights)[0]

        text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(e, w).compile().as_text()
    assert text.count(" all-gather(") == 1
    assert text.count(" reduce-scatter(") == 1
    assert " all-to-all(" not in text and " collective-permute(" not in text


def test_gradients_of_bfloat16_embeddings_meet_in_float32():
    """What the program asks for; a CPU's compiler would widen a sum of bfloat16 by itself."""
    e, w, y, _ = problem(1)
    with on_mesh((8,)):

        def loss(e):
            return cluster_discrimination(e, w, y, num_classes=CLASSES)[0]

        text = jax.jit(jax.grad(loss)).lower(e.astype(jnp.bfloat16)).as_text()
    sums = re.findall(r"stablehlo\.reduce_scatter.*?\}\) : \(tensor<[\dx]+x(\w+)>\)", text, re.S)
    assert sums == ["f32"]
