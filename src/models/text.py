"""The text tower of OpenVision (arXiv 2505.04601): bidirectional, read at its last token.

Shape suffixes: B batch, T tokens, D width, E embedding.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax

from .config import TransformerConfig, require_known
from .mlp import INIT
from .transformer import TransformerBlock, Visibility, layer_norm, stacked, text_recipe

SIZES = {
    "Ti": {"width": 192, "depth": 12, "num_heads": 3, "mlp_dim": 768},
    "S": {"width": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536},
    "B": {"width": 512, "depth": 12, "num_heads": 8, "mlp_dim": 2048},
    "L": {"width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
    "So400m": {"width": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304},
    "H": {"width": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
    "g": {"width": 1280, "depth": 32, "num_heads": 16, "mlp_dim": 5120},
}
"""Text towers, by the size of the vision tower that they are trained with."""

EMBED_DIMS = {"Ti": 192, "S": 384, "B": 512, "L": 768, "So400m": 1152, "H": 1024, "g": 1024}
"""Width of the common embedding, by size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """Architecture and execution of the text tower.

    Attributes:
      vocab_size: V.
      context_length: T; every text has exactly so many ids, its [CLS] at the end.
      embed_dim: E.
    """

    vocab_size: int = 32000
    context_length: int = 80
    embed_dim: int

    _COUNTS: ClassVar[tuple[str, ...]] = (
        *TransformerConfig._COUNTS,
        "vocab_size",
        "context_length",
        "embed_dim",
    )

    @classmethod
    def from_variant(cls, size: str, **overrides: Any) -> TextConfig:
        """The configuration of a size, with fields replaced by `overrides`.

        Args:
          size: a name of `SIZES`.
          **overrides: fields of `TextConfig`.

        Returns:
          The configuration.

        Raises:
          ValueError: the size or a field is unknown, or a value does not fit.
        """
        require_known("text size", size, SIZES)
        return cls.with_fields({**SIZES[size], "embed_dim": EMBED_DIMS[size], **overrides})


class TextEncoder(nn.Module):
    """Token ids -> tokens and one embedding each.

    Attributes:
      config: the architecture.
    """

    config: TextConfig

    @nn.compact
    def __call__(self, ids_BT: jax.Array) -> dict[str, jax.Array]:
        """Encodes a batch of texts. Padding is a token like any other: published weights were
        trained so.

        Args:
          ids_BT: int32, `context_length` of them, the last one [CLS].

        Returns:
          `tokens` [B, T, D] before the final norm, compute dtype; `pooled` [B, E], the projection
          of the last token, float32.

        Raises:
          ValueError: another number of ids.
        """
        cfg = self.config
        if ids_BT.shape[1] != cfg.context_length:
            raise ValueError(
                f"texts have {ids_BT.shape[1]} ids, but the model's context_length = "
                f"{cfg.context_length}: pad or cut them, [CLS] last"
            )
        embed = nn.Embed(cfg.vocab_size, cfg.width, embedding_init=INIT, name="token_embed")
        positions_TD = self.param(
            "pos_embedding", nn.initializers.normal(0.01), (cfg.context_length, cfg.width)
        )
        x = (embed(ids_BT) + positions_TD).astype(cfg.dtype)
        blocks = stacked(TransformerBlock, cfg, self.is_initializing())
        x, _ = blocks(cfg, text_recipe(cfg.width, cfg.depth), name="blocks")(x, Visibility())
        last_BD = layer_norm(cfg, "layernorm_post", "float32")(x[:, -1])
        head = nn.Dense(
            cfg.embed_dim,
            use_bias=False,
            kernel_init=nn.initializers.normal(cfg.width**-0.5),
            name="head",
        )
        return {"tokens": x, "pooled": head(last_BD)}
