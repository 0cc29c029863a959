"""Every implementation against dense float64 numpy, forward and backward."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from codecvit.models.attention import _choose as choose
from codecvit.models.attention import attention
from codecvit.models.splash import splash

B, L, H, K = 3, 24, 2, 32
LENGTHS = np.array([24, 9, 1], np.int32)
SEGMENTS = np.array([[0] * 24, [0] * 5 + [1] * 12 + [2] * 7, [3] * 20 + [1] * 4], np.int32)
# A decoder masks the padding of the images in its prefix by segments.
KINDS = [
    "none", "lengths", "segments", "lengths+segments", "causal", "causal+lengths", "prefix",
    "prefix+lengths", "prefix+segments", "prefix+lengths+segments",
]  # fmt: skip
on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")


def inputs(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(B, L, H, K)).astype(dtype) for _ in range(4)]


def masks(kind):
    """Options of `attention` and, per row, the (query, key) pairs that may meet; None: all."""
    if kind == "lengths":
        allowed = np.broadcast_to(np.arange(L) < LENGTHS[:, None, None], (B, L, L))
        return {"lengths_B": LENGTHS}, allowed
    if kind == "segments":
        return {"segment_ids_BL": SEGMENTS}, SEGMENTS[:, :, None] == SEGMENTS[:, None]
    if kind in ("causal", "prefix"):
        prefix = 0 if kind == "causal" else 10
        query, key = np.mgrid[:L, :L]
        allowed = (key < prefix) | (key <= query)
        return {"causal_from": prefix}, np.broadcast_to(allowed, (B, L, L))
    if "+" in kind:
        options, allowed = zip(*map(masks, kind.split("+")), strict=True)
        return functools.reduce(operator.or_, options), functools.reduce(operator.and_, allowed)
    return {}, np.ones((B, L, L), bool)


def dense_gradients(q, k, v, g, allowed):
    """Forward and gradients of sum(out * g) for one row, float64."""
    scale = q.shape[-1] ** -0.5
    z = np.where(allowed[None], np.einsum("lhk,shk->hls", q, k) * scale, -np.inf)
    p = reference.softmax(z)
    d_p = np.einsum("lhk,shk->hls", g, v)
    d_z = p * (d_p - (d_p * p).sum(-1, keepdims=True)) * scale
    return (
        np.einsum("hls,shk->lhk", p, v),
        np.einsum("hls,shk->lhk", d_z, k),
        np.einsum("hls,lhk->shk", d_z, q),
        np.einsum("hls,lhk->shk", p, g),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("impl", ["xla", "auto"])
def test_equals_dense_reference(impl, kind):
    q, k, v, g = inputs()
    options, allowed = masks(kind)
    # A query that may meet no key has no reference: it gets no weight in the sum.
    alive = allowed.any(-1)
    g = g * alive[:, :, None, None]

    @jax.jit
    def run(q, k, v, g):
        out, vjp = jax.vjp(lambda q, k, v: attention(q, k, v, impl=impl, **options), q, k, v)
        return out, vjp(g)

    out, grads = run(q, k, v, g)
    assert np.isfinite(out).all()
    for b in range(B):
        pairs = np.where(alive[b][:, None], allowed[b], True)
        want = dense_gradients(*(a[b].astype(np.float64) for a in (q, k, v, g)), pairs)
        rows = alive[b]
        np.testing.assert_allclose(out[b][rows], want[0][rows], atol=2e-6)
        for got, expected in zip(grads, want[1:], strict=True):
            np.testing.assert_allclose(got[b], expected, atol=1e-5)


@pytest.mark.parametrize("tokens", [256, 1024, 2048])
@pytest.mark.parametrize(
    ("impl", "dtype"),
    [("xla", np.float32), ("xla", jnp.bfloat16), pytest.param("cudnn", jnp.bfloat16, marks=on_gpu)],
)
def test_rows_of_the_configs_equal_the_dense_reference(impl, dtype, tokens):
    """Heads of 64 channels over the stages' budgets, one row full and one of a third."""
    rng = np.random.default_rng(tokens)
    q, k, v, g = rng.normal(size=(4, 2, tokens, 1, 64)).astype(dtype)
    q = q * 2  # some keys stand out among so many
    lengths = np.array([tokens, tokens // 3 + 5])
    g = np.where((np.arange(tokens) < lengths[:, None])[..., None, None], g, 0).astype(dtype)

    @jax.jit
    def run(q, k, v, g):
        out, vjp = jax.vjp(lambda *a: attention(*a, lengths_B=lengths, impl=impl), q, k, v)
        return out, *vjp(g)

    found = [np.asarray(a, np.float64) for a in run(q, k, v, g)]
    for b, n in enumerate(lengths):
        arrays = (a[b, :n].astype(np.float64) for a in (q, k, v, g))
        want = dense_gradients(*arrays, np.ones((n, n), bool))
        for got, expected in zip(found, want, strict=True):
            wrong = np.linalg.norm(got[b, :n] - expected) / np.linalg.norm(expected)
            assert wrong < (2e-6 if dtype == np.float32 else 0.01)


def test_padding_has_no_influence():
    """Keys and values past the length change neither valid rows nor their gradients."""
    q, k, v, g = inputs()
    valid = (np.arange(L) < LENGTHS[:, None])[:, :, None, None]
    g = g * valid

    @jax.jit
    def run(q, k, v):
        out, vjp = jax.vjp(lambda *a: attention(*a, lengths_B=LENGTHS), q, k, v)
        return [jnp.where(valid, a, 0) for a in (out, *vjp(g))]

    noise = inputs(seed=1)
    before = run(q, k, v)
    after = run(*(np.where(valid, a, 1e4 * b) for a, b in zip((q, k, v), noise[:3], strict=True)))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_empty_row_is_finite():
    q, k, v, _ = inputs()
    empty = np.array([24, 0, 3], np.int32)
    grad = jax.grad(lambda *a: attention(*a, lengths_B=empty).sum(), argnums=(0, 1, 2))
    grads = jax.jit(grad)(q, k, v)
    assert all(np.isfinite(g).all() for g in grads)


def test_bfloat16_softmax_is_float32():
    """With large, close logits a bfloat16 softmax would round the differences away."""
    q, k, v, _ = (jnp.asarray(a, jnp.bfloat16) for a in inputs())
    q = q * 4
    got = attention(q, k, v)
    assert got.dtype == jnp.bfloat16
    want = attention(*(a.astype(jnp.float32) for a in (q, k, v)))
    np.testing.assert_allclose(got.astype(np.float32), want, atol=0.03)


def test_what_is_not_honoured_raises():
    q, k, v, _ = inputs()
    with pytest.raises(ValueError, match=r"'flash' is unknown; .* auto, xla, cudnn, splash"):
        attention(q, k, v, impl="flash")
    with pytest.raises(ValueError, match="takes no segment ids"):
        attention(q, k, v, segment_ids_BL=SEGMENTS, impl="cudnn")
    with pytest.raises(ValueError, match="causal_from = 10 is neither; use impl = 'xla'"):
        attention(q, k, v, causal_from=10, impl="cudnn")
    for wrong in (-1, L + 1):
        with pytest.raises(ValueError, match=rf"causal_from = {wrong} must lie in 0..{L}"):
            attention(q, k, v, causal_from=wrong)
    if jax.default_backend() != "tpu":
        with pytest.raises(ValueError, match="needs a TPU"):
            attention(q, k, v, impl="splash")
    with pytest.raises(ValueError, match="a multiple of 128 tokens, got 24"):
        splash(q, k, v, None, None, interpret=True)
    if jax.default_backend() != "gpu":
        with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
            attention(q, k, v, impl="cudnn")


def test_auto_gives_each_what_it_honours(monkeypatch):
    """A prefix goes to XLA on a GPU, causal attention to cuDNN; splash takes both."""
    q = jnp.zeros((1, 128, 1, 64), jnp.bfloat16)
    chosen = {}
    for platform in ("cpu", "gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        chosen[platform] = [choose(q, None, causal_from) for causal_from in (None, 0, 10)]
    assert chosen["cpu"] == ["xla"] * 3 and chosen["tpu"] == ["splash"] * 3
    assert chosen["gpu"] == ["cudnn", "cudnn", "xla"]


@pytest.mark.parametrize(
    ("platform", "dtype", "tokens", "segments", "impl"),
    [
        ("gpu", jnp.bfloat16, 130, False, "cudnn"),
        ("gpu", jnp.bfloat16, 130, True, "xla"),  # packed rows
        ("gpu", jnp.float32, 130, False, "xla"),
        ("tpu", jnp.float32, 256, True, "splash"),
        ("tpu", jnp.float32, 130, False, "xla"),
    ],
)
def test_auto_leaves_what_a_kernel_does_not_take_to_xla(
    monkeypatch, platform, dtype, tokens, segments, impl
):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    ids = jnp.zeros((1, tokens), jnp.int32) if segments else None
    assert choose(jnp.zeros((1, tokens, 1, 64), dtype), ids, None) == impl


@on_gpu
def test_cudnn_takes_half_precision_only():
    q, k, v, _ = inputs()
    with pytest.raises(ValueError, match="got float32"):
        attention(q, k, v, impl="cudnn")


@on_gpu
@pytest.mark.parametrize("causal_from", [None, 0])
@pytest.mark.parametrize("lengths", [None, LENGTHS, np.array([24, 0, 3], np.int32)])
def test_cudnn_equals_xla(lengths, causal_from):
    masks = {"lengths_B": lengths, "causal_from": causal_from}
    *qkv, g = (jnp.asarray(a, jnp.bfloat16) for a in inputs())
    rows = np.full(B, L) if lengths is None else lengths
    valid = (np.arange(L) < rows[:, None])[:, :, None, None]
    results = []
    for impl in ("xla", "cudnn"):

        def run(*qkv, impl=impl):
            return jnp.where(valid, attention(*qkv, **masks, impl=impl), 0)

        out, vjp = jax.vjp(run, *qkv)
        results.append([np.asarray(a, np.float32) for a in (out, *vjp(g))])
    for a, b in zip(*results, strict=True):
        assert np.isfinite(b).all()
        np.testing.assert_allclose(b, a, atol=0.05)
