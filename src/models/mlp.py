"""The two-layer perceptron of a block, with the exact (erf) GELU.

Shape suffixes: ... any leading axes, D width, F hidden width.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

INIT = nn.initializers.normal(0.02)
"""Kernels of the encoder's linear layers, N(0, 0.02), as published."""


def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x) by the error function: published weights were trained with it, not with tanh."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * 2**-0.5))


class Mlp(nn.Module):
    """fc1 -> GELU -> fc2, with biases.

    Attributes:
      hidden: hidden width F.
      dtype: compute dtype.
    """

    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        h = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=INIT, name="fc1")(x)
        return nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=INIT, name="fc2")(gelu(h))
