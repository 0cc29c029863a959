"""The attentive classifier: attention pooling -> LayerNorm -> Linear, on the tokens of an encoder.

The head of the published attentive probe of OneVision-Encoder (arXiv 2602.08683), the protocol of
V-JEPA (arXiv 2404.08471): heads of width 64, an MLP of 4 D, LayerNorm with epsilon 1e-5. The linear
layer starts at N(0, 0.02) times 1e-3: the published initialiser truncates at 100 deviations, so not
at all.

Shape suffixes: B batch, L tokens, D width, C classes.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from .pooling import AttentionPool

HEAD_WIDTH = 64


class AttentiveClassifier(nn.Module):
    """Tokens of a row -> logits.

    Attributes:
      num_classes: C.
      dtype: compute dtype of the pooling; the norm and the linear layer compute in float32.
    """

    num_classes: int
    dtype: str

    @nn.compact
    def __call__(self, tokens_BLD: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """Classifies rows by their valid prefixes of tokens.

        Args:
          tokens_BLD: the encoder's tokens.
          lengths_B: int32, valid prefix of each row.

        Returns:
          float32 logits [B, C].

        Raises:
          ValueError: the width is no multiple of 64.
        """
        L, D = tokens_BLD.shape[1:]
        if D % HEAD_WIDTH:
            raise ValueError(f"tokens of width {D}: the probe's heads need a multiple of 64")
        valid_B1L = (jnp.arange(L) < lengths_B[:, None])[:, None]
        pool = AttentionPool(D // HEAD_WIDTH, 4 * D, self.dtype, name="pool")
        pooled_BD = pool(tokens_BLD.astype(self.dtype), valid_B1L)[:, 0]
        norm = nn.LayerNorm(epsilon=1e-5, dtype="float32", use_fast_variance=False, name="norm")
        fc = nn.Dense(
            self.num_classes, dtype="float32", kernel_init=nn.initializers.normal(2e-5), name="fc"
        )
        return fc(norm(pooled_BD))
