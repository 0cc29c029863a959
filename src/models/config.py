"""Sizes and execution of a ViT: names, fields and their checks.

The parameter tree does not depend on how a model is executed (dtype, remat, scan, attention).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from .attention import IMPLEMENTATIONS
from .rope import axis_frequencies
from .splash import RESIDUALS

SIZES = {
    "Ti": {"width": 192, "depth": 12, "num_heads": 3, "mlp_dim": 768},
    "S": {"width": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536},
    "B": {"width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
    "L": {"width": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
    "H": {"width": 1280, "depth": 32, "num_heads": 20, "mlp_dim": 5120},
}
"""Ti, S: DeiT (arXiv 2012.12877, table 1). B, L, H: ViT (arXiv 2010.11929, table 1), H with 20
heads as in OneVision-Encoder's huge. The head width is 64 throughout."""


def _keep_products(primitive: Any, *_: Any, **__: Any) -> bool:
    """Keeps matrix products and cuDNN's attention with its statistics."""
    return primitive.name == "dot_general" or primitive.name.startswith("dot_product_attention")


REMAT = {
    "none": jax.checkpoint_policies.save_from_both_policies(
        _keep_products, jax.checkpoint_policies.save_only_these_names(RESIDUALS)
    ),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What a block keeps for the backward pass; the rest is computed again.

none: every product, and what a fused attention needs to go back. Only elementwise functions are
repeated: that takes less time than to write and read what they would keep, about two thirds of a
block's memory.
dots: the outputs of linear layers; attention is repeated.
full: the block's input."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Architecture and execution of a ViT.

    Attributes:
      width: D.
      depth: number of blocks.
      num_heads: H; width / num_heads must be a multiple of 32.
      mlp_dim: hidden width of the MLPs.
      patch: side of a patch in pixels.
      rope_theta: base of the rotary frequencies.
      layer_norm_eps: epsilon of the layer norms.
      dtype: compute dtype, "float32" or "bfloat16"; parameters are float32 either way.
      remat: a name of `REMAT`.
      scan: run the blocks as one `lax.scan` (compiles once) or unrolled; same parameters, same
        numbers.
      attention_impl: "auto" or an implementation of `attention`.
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch: int = 14
    rope_theta: float = 10000.0
    layer_norm_eps: float = 1e-6
    dtype: str = "float32"
    remat: str = "none"
    scan: bool = True
    attention_impl: str = "auto"

    def __post_init__(self) -> None:
        for field in ("width", "depth", "num_heads", "mlp_dim", "patch"):
            if getattr(self, field) < 1:
                raise ValueError(f"ViTConfig.{field} = {getattr(self, field)} must be at least 1")
        if self.width % self.num_heads:
            raise ValueError(
                f"ViTConfig.width = {self.width} must be a multiple of num_heads = {self.num_heads}"
            )
        axis_frequencies(self.width // self.num_heads, self.rope_theta)
        _require_known("dtype", self.dtype, ("float32", "bfloat16"))
        _require_known("remat", self.remat, REMAT)
        _require_known("attention_impl", self.attention_impl, ("auto", *IMPLEMENTATIONS))

    @classmethod
    def from_variant(cls, variant: str, **overrides: Any) -> ViTConfig:
        """The configuration of a size and patch such as "Ti/14", with fields replaced by
        `overrides`.

        Args:
          variant: "SIZE/PATCH", SIZE a name of `SIZES`, PATCH the patch side in pixels.
          **overrides: fields of `ViTConfig`.

        Returns:
          The configuration.

        Raises:
          ValueError: the size or a field is unknown, or a value does not fit.
        """
        size, _, patch = variant.partition("/")
        if size not in SIZES or not patch.isdecimal():
            raise ValueError(
                f"variant {variant!r} is not SIZE/PATCH, such as 'B/14', with SIZE one of "
                f"{', '.join(SIZES)}"
            )
        fields = [field.name for field in dataclasses.fields(cls)]
        for name in overrides:
            _require_known("field", name, fields)
        return cls(**{**SIZES[size], "patch": int(patch), **overrides})


def _require_known(field: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(
            f"ViTConfig.{field} = {value!r} is unknown; choose one of {', '.join(known)}"
        )
