"""A dense float64 reference of the head's loss, inputs that reach its corners, and meshes."""

from __future__ import annotations

import contextlib
import functools

import jax
import numpy as np

from codecvit.losses import cluster_discrimination

MARGIN, SCALE, FILTER = 0.3, 64.0, 0.75
B, D, ROWS, CLASSES = 16, 24, 64, 61  # 61 classes do not divide by 8 devices: 3 rows are padding


def reference(
    e, w, y, weights, num_classes, margin=MARGIN, scale=SCALE, threshold=FILTER, drawn=None
):
    """Loss, gradients by hand, and cosines: one softmax per label, sample by sample, float64.

    With `drawn` classes a sample's softmax has those and its own labels only.
    """
    e, w = e.astype(np.float64), w.astype(np.float64)
    e_norm = np.maximum(np.linalg.norm(e, axis=1, keepdims=True), 1e-12)
    w_norm = np.maximum(np.linalg.norm(w, axis=1, keepdims=True), 1e-12)
    cosine = np.clip((e / e_norm) @ (w / w_norm).T, -1, 1)[:, :num_classes]
    d_cosine = np.zeros((len(e), len(w)))
    rows = [[c for c in row if 0 <= c < num_classes] for row in y]
    weights = np.array([a if row else 0.0 for a, row in zip(weights, rows, strict=True)])
    loss = 0.0
    for i, labels in enumerate(rows):
        taking_part = np.ones(num_classes, bool)
        if drawn is not None:
            taking_part = np.isin(np.arange(num_classes), [*labels, *drawn])
        for c in labels:
            share = weights[i] / weights.sum() / len(labels)
            keep = cosine[i] <= threshold
            keep[c] = True
            z = np.where(keep, scale * cosine[i], 0.0)
            z[c] = scale * (cosine[i, c] - margin)
            z[~taking_part] = -np.inf
            log_sum = z.max() + np.log(np.exp(z - z.max()).sum())
            loss += share * (log_sum - z[c])
            d_z = np.exp(z - log_sum)
            d_z[c] -= 1
            d_cosine[i, :num_classes] += share * scale * np.where(keep, d_z, 0.0)

    def through_norm(grad, x, norm):
        unit = x / norm
        return (grad - unit * (grad * unit).sum(1, keepdims=True)) / norm

    d_e = through_norm(d_cosine @ (w / w_norm), e, e_norm)
    d_w = through_norm(d_cosine.T @ (e / e_norm), w, w_norm)
    return loss, d_e, d_w, cosine


def problem(num_labels, seed=0):
    """Targets and other classes below and above the filter, duplicates, missing labels."""
    rng = np.random.default_rng(seed)
    e = rng.normal(size=(B, D)).astype(np.float32) * 3
    w = rng.normal(size=(ROWS, D)).astype(np.float32) * 0.01
    y = rng.integers(0, CLASSES, (B, num_labels)).astype(np.int32)

    def centre_at(c, i, cosine):
        other = rng.normal(size=D)
        unit = e[i] / np.linalg.norm(e[i])
        other -= unit * (unit @ other)
        other /= np.linalg.norm(other)
        w[c] = 0.02 * (cosine * unit + np.sqrt(1 - cosine**2) * other)

    y[:8, 0] = np.arange(8) * 7  # centres of several shards and chunks
    for i, cosine in enumerate((0.95, 0.85, 0.6, 0.5, 0.999, 0.7)):
        centre_at(y[i, 0], i, cosine)  # a target above or below the filter
    for i, cosine in enumerate((0.9, 0.5, 0.8, 0.7)):
        centre_at(8 * i + 3, i, cosine)  # a class that is no label of the sample
    if num_labels > 1:
        y[0, 1] = 3  # one label's target is the other's filtered class
        y[1, :] = y[1, 0]  # all labels equal
        y[2, 1] = y[2, 0]
        y[6, 1] = -1
        y[7, :] = -1
    y[9, 0] = -1
    weights = rng.uniform(0.5, 2, B).astype(np.float32)
    weights[3] = 0
    return e, w, y, weights


def on_mesh(shape):
    """A context in which the mesh of that shape is set; without a shape, none."""
    if shape is None:
        return contextlib.nullcontext()
    count = int(np.prod(shape))
    mesh = jax.make_mesh(
        shape,
        ("replica", "fsdp")[: len(shape)],
        axis_types=(jax.sharding.AxisType.Auto,) * len(shape),
        devices=jax.devices()[:count],
    )
    return jax.set_mesh(mesh)


@functools.partial(jax.jit, static_argnames="options")
def step(e, w, y, weights, key, options):
    """Compiled once for all tests of the same shapes, options and mesh."""

    def loss(e, w):
        return cluster_discrimination(e, w, y, weights_B=weights, key=key, **dict(options))

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(e, w)


def value_and_grads(e, w, y, weights, key=None, **options):
    """The loss, its metrics and its gradients with respect to embeddings and centres."""
    options = tuple({"num_classes": CLASSES, **options}.items())
    (value, metrics), grads = step(e, w, y, weights.astype(np.float32), key, options)
    return float(value), metrics, *map(np.asarray, grads)


def assert_equal_to_reference(got, want):
    np.testing.assert_allclose(got[0], want[0], rtol=2e-6)
    for grad, expected in zip(got[2:], want[1:3], strict=True):
        np.testing.assert_allclose(grad, expected, rtol=2e-4, atol=2e-6 * np.abs(expected).max())
