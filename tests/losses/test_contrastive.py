"""Both contrastive losses against a dense float64 reference, value and all gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_head import on_mesh
from programs import array_sizes

from codecvit.losses import contrastive

B, E = 16, 24
BIAS = -3.0
WEIGHTS = np.ones(B, np.float32)
WEIGHTS[[0, 5, 11]] = 0, 0, 2.5


def problem(num_texts=1, size=B, seed=0):
    """Unit rows; most texts are near their image, some nearer to another one."""
    rng = np.random.default_rng(seed)

    def unit(x):
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    image = unit(rng.normal(size=(size, E)))
    texts = [unit(image + 0.3 * rng.normal(size=(size, E))) for _ in range(num_texts)]
    texts[0][3], texts[0][4] = texts[0][4], texts[0][3].copy()
    return image, texts


def reference(image, texts, log_scale, bias=None, weights=WEIGHTS, max_scale=100.0):
    """Loss, then gradients by hand of images, texts, log scale and bias, and the accuracy."""
    scale = min(np.exp(np.float64(log_scale)), max_scale)
    moves = np.exp(np.float64(log_scale)) <= max_scale
    here = weights > 0
    image, w = image[here].astype(np.float64), weights[here].astype(np.float64)
    own = np.eye(len(w), dtype=bool)
    loss = d_log_scale = d_bias = accuracy = 0.0
    d_image, d_texts = np.zeros((len(weights), E)), []
    for text in texts:
        text = text[here].astype(np.float64)
        cosine = image @ text.T
        z = scale * cosine + (bias or 0.0)
        if bias is None:
            rows = z - np.log(np.exp(z).sum(1, keepdims=True))
            columns = z - np.log(np.exp(z).sum(0, keepdims=True))
            value = -(w * (rows + columns).diagonal()).sum() / 2
            d_z = (w[:, None] * (np.exp(rows) - own) + w * (np.exp(columns) - own)) / 2
        else:
            share = (w[:, None] + w) / 2
            value = (share * np.logaddexp(0, np.where(own, -z, z))).sum()
            d_z = share * (1 / (1 + np.exp(-z)) - own)
        each = w.sum() * len(texts)
        loss += value / each
        d_z /= each
        d_image[here] += scale * d_z @ text
        d_text = np.zeros((len(weights), E))
        d_text[here] = scale * d_z.T @ image
        d_texts.append(d_text)
        d_log_scale += moves * (d_z * scale * cosine).sum()
        d_bias += d_z.sum()
        others = np.where(own, -np.inf, z).max(1)
        accuracy += (w * (z.diagonal() > others)).sum() / each
    return loss, (d_image, tuple(d_texts), d_log_scale, d_bias), accuracy


@functools.partial(jax.jit, static_argnames="options")
def step(image, texts, log_scale, bias, weights, options):
    def loss(image, texts, log_scale, bias):
        return contrastive(
            image,
            texts,
            logit_scale=log_scale,
            logit_bias=bias,
            weights_B=weights,
            **dict(options),
        )

    argnums = (0, 1, 2) if bias is None else (0, 1, 2, 3)
    return jax.value_and_grad(loss, argnums=argnums, has_aux=True)(image, texts, log_scale, bias)


def value_and_grads(image, texts, log_scale, bias=None, weights=WEIGHTS, **options):
    options["kind"] = "softmax" if bias is None else "sigmoid"
    (value, metrics), grads = step(
        image, tuple(texts), log_scale, bias, weights, tuple(options.items())
    )
    return float(value), metrics, grads


def assert_close(grads, want, rtol=2e-5):
    """Largest error against the largest entry; a sigmoid's gradients have the bias's too."""
    image, texts, *scalars = grads
    for got, expected in zip((image, *texts), (want[0], *want[1]), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * np.abs(expected).max())
    np.testing.assert_allclose(scalars, want[2 : 2 + len(scalars)], rtol=10 * rtol)


@pytest.mark.parametrize("bias", [None, BIAS], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("shape", "chunks"), [(None, 1), (None, 3), ((8,), 1), ((8,), 4), ((4, 2), 3)]
)
def test_equals_dense_reference(shape, chunks, bias):
    image, texts = problem(num_texts=2)
    want, d_want, accuracy = reference(image, texts, np.log(20.0), bias)
    with on_mesh(shape):
        got, metrics, grads = value_and_grads(image, texts, np.log(20.0), bias, chunks=chunks)
    np.testing.assert_allclose(got, want, rtol=2e-6)
    assert_close(grads, d_want)
    assert 0 < accuracy < 1
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-6)
    np.testing.assert_allclose(metrics["logit_scale"], 20, rtol=1e-6)


@pytest.mark.parametrize("bias", [None, BIAS], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize(("chunks", "size"), [(7, 24), (100, 16)])
def test_pieces_that_do_not_divide_the_batch(chunks, size, bias):
    image, texts = problem(size=size)
    weights = np.ones(size, np.float32)
    want, d_want, _ = reference(image, texts, np.log(20.0), bias, weights)
    with on_mesh((8,)):
        got, _, grads = value_and_grads(image, texts, np.log(20.0), bias, weights, chunks=chunks)
    np.testing.assert_allclose(got, want, rtol=2e-6)
    assert_close(grads, d_want)


@pytest.mark.parametrize("bias", [None, BIAS], ids=["softmax", "sigmoid"])
def test_no_weights_are_weights_of_one(bias):
    image, texts = problem()
    ones = value_and_grads(image, texts, 3.0, bias, np.ones(B, np.float32))
    none = value_and_grads(image, texts, 3.0, bias, None)
    assert ones[0] == none[0]


def test_two_texts_are_the_mean_of_each():
    image, texts = problem(num_texts=2)
    both = value_and_grads(image, texts, 3.0)[0]
    each = [value_and_grads(image, [text], 3.0)[0] for text in texts]
    assert each[0] != each[1]
    np.testing.assert_allclose(both, np.mean(each), rtol=1e-6)


@pytest.mark.parametrize("bias", [None, BIAS], ids=["softmax", "sigmoid"])
def test_rows_of_weight_0_change_nothing_and_get_no_gradient(bias):
    image, texts = problem(num_texts=2)
    changed = image.copy()
    changed[0], changed[5] = image[7], np.nan  # somebody's perfect negative; garbage
    other_texts = [text.copy() for text in texts]
    other_texts[1][0], other_texts[1][5] = texts[1][7], np.nan
    with on_mesh((8,)):
        before = value_and_grads(image, texts, 3.0, bias, chunks=2)
        after = value_and_grads(changed, other_texts, 3.0, bias, chunks=2)
    assert before[0] == after[0]
    assert before[1] == after[1]
    for a, b in zip(jax.tree.leaves(before[2]), jax.tree.leaves(after[2]), strict=True):
        np.testing.assert_array_equal(a, b)
    for grad in (after[2][0], *after[2][1]):
        assert not np.asarray(grad)[[0, 5]].any() and np.asarray(grad)[1].any()
    # Leaving them out by hand is the same.
    keep = WEIGHTS > 0
    alone = value_and_grads(image[keep], [t[keep] for t in texts], 3.0, bias, WEIGHTS[keep])
    np.testing.assert_allclose(after[0], alone[0], rtol=1e-6)
    assert_close(
        [g[keep] if g.ndim else g for g in (after[2][0],)]
        + [tuple(g[keep] for g in after[2][1]), *after[2][2:]],
        alone[2],
    )


@pytest.mark.parametrize("bias", [None, BIAS], ids=["softmax", "sigmoid"])
def test_a_batch_without_weight_is_0(bias):
    image, texts = problem()
    with on_mesh((8,)):
        value, metrics, grads = value_and_grads(image, texts, 3.0, bias, np.zeros(B, np.float32))
    assert value == 0 and metrics["accuracy"] == 0
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads))


def test_the_scale_is_held_at_its_maximum():
    image, texts = problem()
    ones = np.ones(B, np.float32)
    above, metrics, grads = value_and_grads(image, texts, np.log(500.0), weights=ones)
    at, _, grads_at = value_and_grads(image, texts, np.float32(np.log(100.0)), weights=ones)
    np.testing.assert_allclose(above, at, rtol=1e-6)
    np.testing.assert_allclose(metrics["logit_scale"], 100, rtol=1e-6)
    assert grads[2] == 0 and grads_at[2] != 0  # a scale at the bound still falls
    lower = value_and_grads(image, texts, np.log(500.0), weights=ones, max_scale=10.0)
    want, d_want, _ = reference(image, texts, np.log(500.0), weights=ones, max_scale=10.0)
    np.testing.assert_allclose(lower[0], want, rtol=1e-6)
    assert_close(lower[2], d_want)


def test_perfect_pairs_at_scale_100_keep_their_small_loss():
    """exp(-100 * 0.2) beside exp(100): a plain log-sum-exp in float32 gives 0 or 8e-6."""
    image = np.eye(8, dtype=np.float32) * 0.6
    image = np.concatenate([image, np.full((8, 1), 0.8, np.float32)], axis=1)
    ones = np.ones(8, np.float32)
    value, _, grads = value_and_grads(image, [image], np.float32(np.log(100.0)), weights=ones)
    np.testing.assert_allclose(value, 7 * np.exp(-36.0), rtol=1e-3)
    assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(grads))
    value = value_and_grads(image, [-image], np.float32(np.log(100.0)), weights=ones)[0]
    np.testing.assert_allclose(value, 36 + np.log(7), rtol=1e-6)


def test_constant_embeddings_are_never_accurate():
    image = np.zeros((16, E), np.float32)
    image[:, 0] = 1
    with on_mesh((8,)):
        for bias in (None, BIAS):
            value, metrics, _ = value_and_grads(
                image, [image], 3.0, bias, np.ones(16, np.float32), chunks=3
            )
            assert metrics["accuracy"] == 0
            if bias is None:
                np.testing.assert_allclose(value, np.log(16), rtol=1e-6)


@pytest.mark.parametrize("bias", [None, BIAS], ids=["softmax", "sigmoid"])
def test_bfloat16_rows_keep_float32_logits(bias):
    image, texts = problem(num_texts=2)
    rounded = [x.astype(jnp.bfloat16) for x in (image, *texts)]
    want, d_want, _ = reference(
        *(lambda i, *t: (i, t))(*(x.astype(np.float32) for x in rounded)), 3.0, bias
    )
    with on_mesh((8,)):
        value, _, grads = value_and_grads(rounded[0], rounded[1:], 3.0, bias, chunks=4)
    np.testing.assert_allclose(value, want, rtol=2e-6)  # bfloat16 logits would be off by 4e-3
    assert {g.dtype for g in (grads[0], *grads[1])} == {jnp.dtype(jnp.bfloat16)}
    grads = jax.tree.map(lambda g: np.asarray(g, np.float32), grads)
    assert_close(grads, d_want, rtol=1e-2)


@pytest.mark.parametrize("bias", [None, BIAS], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("shape", [None, (8,)])
def test_no_device_holds_the_logits_of_its_rows_with_all_others(shape, bias):
    """512 pairs of width 24: 16 pieces of 32 images."""
    size = 512
    image, texts = problem(size=size)
    weights = np.ones(size, np.float32)
    bias = None if bias is None else np.float32(bias)
    own = size // (8 if shape else 1)

    def largest(chunks):
        with on_mesh(shape):
            if shape:
                rows = jax.NamedSharding(
                    jax.sharding.get_mesh(), jax.sharding.PartitionSpec("replica")
                )
                arrays = jax.device_put((image, tuple(texts)), rows)
            else:
                arrays = image, tuple(texts)
            kind = "softmax" if bias is None else "sigmoid"
            options = (("kind", kind), ("chunks", chunks))
            lowered = step.lower(*arrays, np.float32(3), bias, weights, options)
            return max(array_sizes(lowered.compile()))

    assert largest(1) >= own * size  # the test sees what it looks for
    embeddings = size * E
    assert largest(16) <= max(embeddings, own * size // 16) < own * size


def test_one_gather_of_the_images_for_all_texts():
    image, texts = problem(num_texts=2)
    with on_mesh((8,)):
        rows = jax.NamedSharding(jax.sharding.get_mesh(), jax.sharding.PartitionSpec("replica"))
        arrays = jax.device_put((image, tuple(texts)), rows)
        lowered = step.lower(*arrays, np.float32(3), None, WEIGHTS, (("chunks", 2),))
        text = lowered.compile().as_text()
    gathered = [line for line in text.splitlines() if f"f32[{B},{E}]" in line.split("(")[0]]
    assert sum(" all-gather(" in line for line in gathered) == 1
    assert text.count(" reduce-scatter(") == 1
    assert " all-to-all(" not in text and " collective-permute(" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "clip"}, "kind = 'clip' must be one of softmax, sigmoid"),
        ({"kind": "sigmoid"}, "needs logit_bias"),
        ({"logit_bias": 0.0}, "logit_bias changes nothing"),
        ({"texts": []}, "texts is empty"),
        ({"texts": [np.zeros((B, 3))]}, r"texts\[0\] has shape \(16, 3\)"),
        ({"weights_B": np.ones(3)}, r"weights_B has shape \(3,\)"),
        ({"chunks": 0}, "chunks = 0"),
        ({"max_scale": 0.0}, "max_scale = 0.0"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    image, texts = problem()
    arguments = {"image_BE": image, "texts": texts, "logit_scale": 0.0} | change
    with pytest.raises(ValueError, match=message):
        contrastive(**arguments)


def test_rows_must_divide_among_the_devices():
    image, texts = problem(size=12)
    with on_mesh((8,)), pytest.raises(ValueError, match="12 pairs.*multiple of 8"):
        contrastive(image, texts, logit_scale=0.0)
