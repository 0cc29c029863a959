"""Attention pooling: one learned query gathers the tokens of a row, or of each image in it.

The head of OneVision-Encoder (Siglip2MultiheadAttentionPoolingHead): A = MHA(probe, X, X); y = A +
MLP(RMSNorm(A)), without a residual from the probe, a position code or another norm on X.

Shape suffixes: B batch, S segments of a row, L tokens, D width, H heads, K head width.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from .mlp import Mlp, linear

_MASKED = -1e30  # finite: a row without valid tokens stays finite


class PoolingAttention(nn.Module):
    """Multi-head attention of a single query that is the same for every row.

    Because the query does not depend on the input, the key projection is applied to the query
    instead of the tokens (q . Wk x = Wk^T q . x; the key bias shifts all scores of a head alike and
    drops out of the softmax) and the value projection to the weighted mean of the tokens. Equal to
    the textbook form, at 2*L*H*D multiplications in place of 2*L*D*D.

    Attributes:
      num_heads: H.
      dtype: compute dtype.
    """

    num_heads: int
    dtype: str

    @nn.compact
    def __call__(self, probe_11D: jax.Array, x_BLD: jax.Array, valid_BSL: jax.Array) -> jax.Array:
        """Returns [B, S, D], of each segment's own tokens."""
        D, H = x_BLD.shape[-1], self.num_heads
        kernel, bias = _Projection(3 * D, name="qkv")(D)
        kernel_D3HK = kernel.astype(self.dtype).reshape(D, 3, H, D // H)
        bias_3HK = bias.astype(self.dtype).reshape(3, H, D // H)

        q_HK = jnp.einsum("D,DHK->HK", probe_11D[0, 0].astype(self.dtype), kernel_D3HK[:, 0])
        q_HK = (q_HK + bias_3HK[0]) * (D // H) ** -0.5
        query_HD = jnp.einsum("HK,DHK->HD", q_HK, kernel_D3HK[:, 1])
        scores_BHL = jnp.einsum("HD,BLD->BHL", query_HD, x_BLD, preferred_element_type=jnp.float32)
        scores_BSHL = jnp.where(valid_BSL[:, :, None], scores_BHL[:, None], _MASKED)
        probs_BSHL = jax.nn.softmax(scores_BSHL, axis=-1).astype(self.dtype)
        mean_BSHD = jnp.einsum("BSHL,BLD->BSHD", probs_BSHL, x_BLD)
        values_BSHK = jnp.einsum("BSHD,DHK->BSHK", mean_BSHD, kernel_D3HK[:, 2]) + bias_3HK[2]
        return linear(D, self.dtype, "out")(values_BSHK.reshape(*valid_BSL.shape[:2], D))


class AttentionPool(nn.Module):
    """Tokens of a row -> one vector.

    Attributes:
      num_heads: heads of the attention.
      mlp_dim: hidden width of the MLP.
      dtype: compute dtype.
    """

    num_heads: int
    mlp_dim: int
    dtype: str

    @nn.compact
    def __call__(self, x_BLD: jax.Array, valid_BSL: jax.Array) -> jax.Array:
        """Pools, S times, the tokens of each row that are valid: [B, L, D] -> [B, S, D]."""
        probe = self.param("probe", nn.initializers.normal(1.0), (1, 1, x_BLD.shape[-1]))
        attn = PoolingAttention(self.num_heads, self.dtype, name="attn")
        pooled_BSD = attn(probe, x_BLD, valid_BSL)
        norm = nn.RMSNorm(epsilon=1e-6, dtype=self.dtype, name="norm")
        return pooled_BSD + Mlp(self.mlp_dim, self.dtype, name="mlp")(norm(pooled_BSD))


class _Projection(nn.Module):
    """Kernel and bias of a fused q|k|v projection, which `PoolingAttention` uses part by part.

    Xavier-uniform over the fused matrix: PyTorch's default for MultiheadAttention, which the
    published code keeps.
    """

    features: int

    @nn.compact
    def __call__(self, width: int) -> tuple[jax.Array, jax.Array]:
        """Returns kernel [width, features] and bias [features]."""
        kernel = self.param(
            "kernel", nn.initializers.xavier_uniform(), (width, self.features), jnp.float32
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return kernel, bias
