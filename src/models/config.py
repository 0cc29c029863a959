"""Sizes and execution of the transformers: names, fields and their checks.

The parameter tree does not depend on how a model is executed (dtype, remat, scan, attention).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import jax

from .attention import IMPLEMENTATIONS
from .rope import axis_frequencies
from .splash import RESIDUALS

Config = TypeVar("Config", bound="TransformerConfig")

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
class TransformerConfig:
    """What every transformer here has in common.

    Attributes:
      width: D.
      depth: number of blocks.
      num_heads: H, a divisor of the width.
      mlp_dim: hidden width of the MLPs.
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
    layer_norm_eps: float = 1e-6
    dtype: str = "float32"
    remat: str = "none"
    scan: bool = True
    attention_impl: str = "auto"

    _COUNTS: ClassVar[tuple[str, ...]] = ("width", "depth", "num_heads", "mlp_dim")

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in self._COUNTS:
            if getattr(self, field) < 1:
                raise ValueError(f"{name}.{field} = {getattr(self, field)} must be at least 1")
        if self.width % self.num_heads:
            raise ValueError(
                f"{name}.width = {self.width} must be a multiple of num_heads = {self.num_heads}"
            )
        require_known(f"{name}.dtype", self.dtype, ("float32", "bfloat16"))
        require_known(f"{name}.remat", self.remat, REMAT)
        require_known(f"{name}.attention_impl", self.attention_impl, ("auto", *IMPLEMENTATIONS))

    @classmethod
    def with_fields(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """The configuration of these fields.

        Raises:
          ValueError: a field is unknown, or a value does not fit.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            require_known(f"{cls.__name__}.field", name, fields)
        return cls(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(TransformerConfig):
    """Architecture and execution of a ViT; width / num_heads must be a multiple of 32.

    Attributes:
      patch: side of a patch in pixels.
      rope_theta: base of the rotary frequencies.
    """

    patch: int = 14
    rope_theta: float = 10000.0

    _COUNTS: ClassVar[tuple[str, ...]] = (*TransformerConfig._COUNTS, "patch")

    def __post_init__(self) -> None:
        super().__post_init__()
        axis_frequencies(self.width // self.num_heads, self.rope_theta)

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
        return cls.with_fields({**parse_variant(variant, SIZES), **overrides})


def parse_variant(variant: str, sizes: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Fields of "SIZE/PATCH": those of the size, and the patch side in pixels.

    Raises:
      ValueError: the size is none of `sizes`, or there is no patch side.
    """
    size, _, patch = variant.partition("/")
    if size not in sizes or not patch.isdecimal():
        raise ValueError(
            f"variant {variant!r} is not SIZE/PATCH, such as 'B/14', with SIZE one of "
            f"{', '.join(sizes)}"
        )
    return {**sizes[size], "patch": int(patch)}


def require_known(field: str, value: str, known: Iterable[str]) -> None:
    """Raises a ValueError that names the field and its choices if the value is none of them."""
    if value not in known:
        raise ValueError(f"{field} = {value!r} is unknown; choose one of {', '.join(known)}")
