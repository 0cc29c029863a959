"""The TPU kernel, interpreted step by step on the CPU, against XLA's attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from codecvit.models.attention import attention
from codecvit.models.splash import splash

B, H, K = 2, 2, 64


def inputs(L, rows=B, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(rows, L, H, K)), jnp.float32) for _ in range(4)]


def masks(kind, L):
    lengths = np.array([L, L // 3], np.int32) if kind in ("lengths", "both") else None
    # Segments that cross the kernel's blocks, and one that comes again later in the row.
    cut = np.arange(L) // (L // 3)
    segments = np.stack([cut, np.where(cut == 2, 0, cut)]).astype(np.int32)
    return lengths, (segments if kind in ("segments", "both") else None)


@pytest.mark.parametrize("L", [128, 384])
@pytest.mark.parametrize("kind", ["none", "lengths", "segments", "both"])
def test_equals_xla_forward_and_backward(kind, L):
    *qkv, g = inputs(L)
    lengths, segments = masks(kind, L)
    valid = np.ones((B, L), bool) if lengths is None else np.arange(L) < lengths[:, None]
    g = g * valid[:, :, None, None]

    def run_splash(q, k, v):
        return splash(q, k, v, lengths, segments, interpret=True)

    def run_xla(q, k, v):
        return attention(q, k, v, lengths_B=lengths, segment_ids_BL=segments, impl="xla")

    results = []
    for run in (run_splash, run_xla):
        out, vjp = jax.vjp(run, *qkv)
        assert np.isfinite(out).all()
        results.append([out * valid[:, :, None, None], *vjp(g)])
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, atol=5e-6)


def test_a_mesh_splits_rows_and_heads_without_changing_them():
    *qkv, g = inputs(128, rows=4)
    lengths = np.array([128, 5, 77, 128], np.int32)

    def loss(q, k, v):
        return (splash(q, k, v, lengths, None, interpret=True) * g).sum()

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    alone = grad(*qkv)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        together = grad(*qkv)
        text = grad.lower(*qkv).as_text()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), alone, together)
    assert f"tensor<1x128x1x{K}xf32>" in text  # a device sees its own row and head only


def test_equals_xla_at_the_rows_of_the_configs():
    """256 tokens of a 224-pixel image and a full block of 512, forward."""
    for L in (256, 1024):
        q, k, v, _ = inputs(L)
        got = splash(q, k, v, None, None, interpret=True)
        np.testing.assert_allclose(got, attention(q, k, v, impl="xla"), atol=5e-6)
