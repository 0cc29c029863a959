"""Where a CPU step's time goes, beside PyTorch: the parts of one block at 8 x 256 tokens of a Ti.

    python benchmarks/step_parts.py

Forward and backward of each part alone, float32, medians of 20 runs in one process.
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from codecvit.models.attention import attention

B, L, D, H, MLP, DEPTH = 8, 256, 192, 3, 768, 12


def main():
    rng = np.random.default_rng(0)
    rows = []
    shapes = {"qkv": (D, 3 * D), "out": (D, D), "fc1": (D, MLP), "fc2": (MLP, D)}
    for name, (inputs, outputs) in shapes.items():
        x, w, g = (
            rng.normal(size=shape).astype(np.float32)
            for shape in ((B * L, inputs), (inputs, outputs), (B * L, outputs))
        )
        ours = jax.jit(lambda x, w, g: (x @ w, g @ w.T, x.T @ g))
        theirs = [torch.from_numpy(a) for a in (x, w, g)]
        rows.append(
            (
                f"products of {name}",
                milliseconds(lambda f=ours, a=(x, w, g): jax.block_until_ready(f(*a))),
                milliseconds(lambda t=theirs: (t[0] @ t[1], t[2] @ t[1].T, t[0].T @ t[2])),
            )
        )
    q = rng.normal(size=(B, L, H, D // H)).astype(np.float32)
    ours = jax.jit(jax.grad(lambda q: attention(q, q, q, impl="xla").sum()))
    t = torch.from_numpy(q).transpose(1, 2).contiguous().requires_grad_()
    rows.append(
        (
            "attention",
            milliseconds(lambda: jax.block_until_ready(ours(q))),
            milliseconds(lambda: F.scaled_dot_product_attention(t, t, t).sum().backward()),
        )
    )
    h = rng.normal(size=(B * L, MLP)).astype(np.float32)
    gelu = jax.jit(jax.grad(lambda h: jnp.sum(jax.nn.gelu(h, approximate=False))))
    th = torch.from_numpy(h).requires_grad_()
    rows.append(
        (
            "GELU",
            milliseconds(lambda: jax.block_until_ready(gelu(h))),
            milliseconds(lambda: F.gelu(th).sum().backward()),
        )
    )
    total = (DEPTH * sum(row[i] for row in rows) for i in (1, 2))
    rows.append((f"all of it, {DEPTH} blocks", *total))
    print("| part | JAX ms | PyTorch ms | ratio |\n|---|---|---|---|")
    for name, ours, theirs in rows:
        print(f"| {name} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |")


def milliseconds(call):
    seconds = []
    for _ in range(23):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds[3:]))


if __name__ == "__main__":
    main()
