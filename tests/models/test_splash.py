"""The TPU kernel, interpreted step by step on the CPU, against XLA's attention."""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import AxisType

from codecvit.models import ViT, ViTConfig
from codecvit.models.attention import IMPLEMENTATIONS, attention
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


# Blocks of 128 once and several times; then the rows of the configs: 256 tokens of a 224-pixel
# image (one block of 256) and 1,024 of a 448-pixel one (two of 512, as four at 2,048).
@pytest.mark.parametrize(
    ("kind", "L", "causal_from"),
    [(kind, L, None) for L in (128, 384) for kind in ("none", "lengths", "segments", "both")]
    + [("lengths", 256, None), ("both", 1024, None)]
    + [("none", 384, 0), ("none", 384, 200), ("lengths", 128, 40), ("segments", 384, 200)],
)
def test_equals_xla_forward_and_backward(kind, L, causal_from):
    *qkv, g = inputs(L)
    lengths, segments = masks(kind, L)
    valid = np.ones((B, L), bool) if lengths is None else np.arange(L) < lengths[:, None]
    g = g * valid[:, :, None, None]

    def run_splash(q, k, v):
        return splash(q, k, v, lengths, segments, causal_from=causal_from, interpret=True)

    def run_xla(q, k, v):
        masks = {"lengths_B": lengths, "segment_ids_BL": segments, "causal_from": causal_from}
        return attention(q, k, v, **masks, impl="xla")

    results = []
    for run in (run_splash, run_xla):

        @jax.jit
        def both_ways(*qkv, run=run):
            out, vjp = jax.vjp(run, *qkv)
            return out, vjp(g)

        out, grads = both_ways(*qkv)
        assert np.isfinite(out).all()
        results.append([out * valid[:, :, None, None], *grads])
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, atol=5e-6)


@pytest.mark.parametrize("causal_from", [None, 50])
def test_a_mesh_splits_rows_and_heads_without_changing_them(causal_from):
    *qkv, g = inputs(128, rows=4)
    lengths = np.array([128, 5, 77, 128], np.int32)

    def loss(q, k, v):
        out = splash(q, k, v, lengths, None, causal_from=causal_from, interpret=True)
        return (out * g).sum()

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    alone = grad(*qkv)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        together = grad(*qkv)
        text = grad.lower(*qkv).as_text()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), alone, together)
    assert f"tensor<1x128x1x{K}xf32>" in text  # a device sees its own row and head only


@pytest.mark.parametrize("mesh", [False, True])
@pytest.mark.parametrize(("remat", "kernels"), [("none", 3), ("dots", 4), ("full", 4)])
def test_remat_none_does_not_repeat_the_kernel(monkeypatch, remat, kernels, mesh):
    """A gradient runs the kernels forward, dq and dkv; one more where attention is repeated."""
    interpreted = functools.partial(splash, interpret=True)
    monkeypatch.setitem(IMPLEMENTATIONS, "splash", interpreted)
    vit = ViT(
        ViTConfig(
            width=64,
            depth=2,
            num_heads=1,
            mlp_dim=64,
            patch=2,
            remat=remat,
            attention_impl="splash",
        )
    )
    rows = (
        jnp.zeros((2, 128, 12), jnp.uint8),
        jnp.zeros((2, 128, 3), jnp.int32),
        jnp.array([128, 5]),
    )
    shapes = jax.eval_shape(vit.init, jax.random.key(0), *rows)

    def gradient(variables):
        return jax.grad(lambda v: vit.apply(v, *rows)["pooled"].sum())(variables)

    devices = jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    with jax.set_mesh(devices) if mesh else contextlib.nullcontext():
        jaxpr = jax.make_jaxpr(gradient)(shapes).jaxpr
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    assert count_kernels(used) == kernels


def count_kernels(jaxpr):
    """Pallas calls of a program, each loop's body counted once."""
    found = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            found += 1
        else:
            found += sum(count_kernels(inner) for inner in inner_jaxprs(eqn.params))
    return found


def inner_jaxprs(params):
    for value in params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner
