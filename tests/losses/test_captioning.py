"""The chunked caption loss against a dense float64 reference, value and all gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_head import on_mesh
from programs import array_sizes

from codecvit.losses import captioning

B, T, D, V = 16, 5, 12, 37
WEIGHTS = np.ones(B, np.float32)
WEIGHTS[[0, 5, 11]] = 0, 0, 2.5


def problem(batch=B, length=T, words=V, seed=0):
    """Captions of very different lengths, one of them empty; some targets are likely."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(batch, length, D)).astype(np.float32)
    kernel = rng.normal(size=(D, words)).astype(np.float32)
    targets = rng.integers(0, words, (batch, length)).astype(np.int32)
    targets[::2] = (hidden @ kernel)[::2].argmax(-1)
    mask = np.arange(length) < rng.integers(1, length + 1, (batch, 1))
    mask[2] = False
    mask[4, 1] = False  # a hole
    return hidden, kernel, targets, mask


def reference(hidden, kernel, targets, mask, weights=WEIGHTS):
    """Loss, its gradients by hand, accuracy: token by token, float64."""
    hidden, kernel = hidden.astype(np.float64), kernel.astype(np.float64)
    d_hidden, d_kernel = np.zeros_like(hidden), np.zeros_like(kernel)
    loss = hits = total = 0.0
    for b, t in zip(*np.nonzero(mask), strict=True):
        logits = hidden[b, t] @ kernel
        log_p = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        loss -= weights[b] * log_p[targets[b, t]]
        hits += weights[b] * (logits.argmax() == targets[b, t])
        total += weights[b]
        d_logits = weights[b] * np.exp(log_p)
        d_logits[targets[b, t]] -= weights[b]
        d_hidden[b, t] = kernel @ d_logits
        d_kernel += np.outer(hidden[b, t], d_logits)
    return loss / total, (d_hidden / total, d_kernel / total), hits / total


@functools.partial(jax.jit, static_argnames="chunk")
def step(hidden, kernel, targets, mask, weights, chunk):
    def loss(hidden, kernel):
        return captioning(hidden, kernel, targets, mask, weights_B=weights, chunk=chunk)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, kernel)


def value_and_grads(hidden, kernel, targets, mask, weights=WEIGHTS, chunk=2048):
    (value, metrics), grads = step(hidden, kernel, targets, mask, weights, chunk)
    return float(value), float(metrics["token_accuracy"]), [*map(np.asarray, grads)]


def assert_close(grads, want, rtol=1e-5):
    for grad, expected in zip(grads, want, strict=True):
        np.testing.assert_allclose(grad, expected, rtol=0, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize(  # 80 tokens, 10 of one device of 8
    ("shape", "chunk"), [(None, 1000), (None, 7), ((8,), 1), ((8,), 4), ((4, 2), 1000)]
)
def test_equals_dense_reference(shape, chunk):
    data = problem()
    want, d_want, accuracy = reference(*data)
    with on_mesh(shape):
        got, token_accuracy, grads = value_and_grads(*data, chunk=chunk)
    np.testing.assert_allclose(got, want, rtol=2e-6)
    assert_close(grads, d_want)
    assert 0 < accuracy < 1
    np.testing.assert_allclose(token_accuracy, accuracy, rtol=1e-6)


def test_the_mean_is_one_over_all_tokens_not_of_the_devices_means():
    hidden, kernel, targets, mask = problem()
    mask[:] = False
    mask[0], mask[15, 0] = True, True  # five tokens on the first device, one on the last
    ones = np.ones(B, np.float32)
    with on_mesh((8,)):
        got = value_and_grads(hidden, kernel, targets, mask, ones)
    first, last = (
        value_and_grads(hidden, kernel, targets, mask & (np.arange(B) == b)[:, None], ones)[0]
        for b in (0, 15)
    )
    assert abs(first - last) > 0.1
    np.testing.assert_allclose(got[0], (5 * first + last) / 6, rtol=1e-6)


def test_masked_tokens_and_captions_without_weight_change_nothing():
    hidden, kernel, targets, mask = problem()
    out = ~mask | (WEIGHTS == 0)[:, None]
    changed, other = hidden.copy(), targets.copy()
    changed[out], other[out] = np.nan, -100
    with on_mesh((8,)):
        before = value_and_grads(hidden, kernel, targets, mask, chunk=4)
        after = value_and_grads(changed, kernel, other, mask, chunk=4)
    assert before[:2] == after[:2]
    for a, b in zip(before[2], after[2], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not after[2][0][out].any() and after[2][0][~out].any()


def test_no_weights_are_weights_of_one():
    data = problem()
    assert value_and_grads(*data, None)[:2] == value_and_grads(*data, np.ones(B, np.float32))[:2]


@pytest.mark.parametrize("shape", [None, (8,)])
def test_a_batch_without_tokens_is_0(shape):
    hidden, kernel, targets, mask = problem()
    with on_mesh(shape):
        for nothing in ((mask & False, WEIGHTS), (mask, 0 * WEIGHTS)):
            value, accuracy, grads = value_and_grads(hidden, kernel, targets, *nothing, chunk=4)
            assert value == 0 and accuracy == 0
            assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("word", [-1, V])
def test_a_target_that_is_no_word_is_not_passed_over(word):
    hidden, kernel, targets, mask = problem()
    targets[1, 0] = word
    assert mask[1, 0] and WEIGHTS[1]
    assert np.isnan(value_and_grads(hidden, kernel, targets, mask)[0])


def test_equal_logits_are_no_hit():
    hidden, kernel, targets, mask = problem()
    value, accuracy, _ = value_and_grads(0 * hidden, kernel, 0 * targets, mask)
    np.testing.assert_allclose(value, np.log(V), rtol=1e-6)
    assert accuracy == 0


def test_large_logits_stay_finite():
    hidden, kernel, targets, mask = problem()
    want, d_want, _ = reference(100 * hidden, kernel, targets, mask)
    value, _, grads = value_and_grads(100 * hidden, kernel, targets, mask)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert_close(grads, d_want, rtol=1e-3)


def test_bfloat16_states_keep_float32_logits():
    hidden, kernel, targets, mask = problem()
    hidden, rounded = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
    exact = [np.asarray(x, np.float32) for x in (hidden, rounded)]
    want, d_want, _ = reference(*exact, targets, mask)
    with on_mesh((8,)):
        value, _, grads = value_and_grads(hidden, kernel, targets, mask, chunk=3)
    np.testing.assert_allclose(value, want, rtol=2e-6)  # bfloat16 logits would be off by 4e-3
    assert [grad.dtype for grad in grads] == [jnp.bfloat16, np.float32]
    assert_close([grad.astype(np.float32) for grad in grads], d_want, rtol=1e-2)


@pytest.mark.parametrize("shape", [None, (8,)])
def test_no_device_holds_the_logits_of_all_its_tokens(shape):
    """512 tokens, 1,000 words, pieces of 16 tokens."""
    data = problem(batch=32, length=16, words=1000)
    tokens = 512 // (8 if shape else 1)

    def largest(chunk):
        with on_mesh(shape):
            arrays = data
            if shape:
                mesh, spec = jax.sharding.get_mesh(), jax.sharding.PartitionSpec
                rows, whole = (jax.NamedSharding(mesh, s) for s in (spec("replica"), spec()))
                arrays = jax.device_put(data, (rows, whole, rows, rows))
            return max(array_sizes(step.lower(*arrays, None, chunk).compile()))

    assert largest(tokens) >= tokens * 1000  # the test sees what it looks for
    assert largest(16) == 16 * 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_DV": np.zeros((3, V))}, r"hidden states \(16, 5, 12\) and kernel \(3, 37\)"),
        ({"targets_BT": np.zeros((B, 3), int)}, r"targets_BT has shape \(16, 3\)"),
        ({"mask_BT": np.ones(B, bool)}, r"mask_BT has shape \(16,\)"),
        ({"weights_B": np.ones(3)}, r"weights_B has shape \(3,\)"),
        ({"chunk": 0}, "chunk = 0"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    names = ("hidden_BTD", "kernel_DV", "targets_BT", "mask_BT")
    with pytest.raises(ValueError, match=message):
        captioning(**dict(zip(names, problem(), strict=True)) | change)


def test_captions_must_divide_among_the_devices():
    with on_mesh((8,)), pytest.raises(ValueError, match="12 captions.*multiple of 8"):
        captioning(*problem(batch=12))
