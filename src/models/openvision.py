"""The vision tower of OpenVision over patch sequences (arXiv 2505.04601; 2509.01644).

patch embedding + fixed sin-cos code -> pre-norm blocks -> mean of the patches -> layernorm_post. A
learned class token goes through the blocks beside the patches and is dropped: the published weights
have it. The position code has no parameters, so a model runs at any resolution; it knows rows and
columns, not the time index of a video's patches.

Shape suffixes: B batch, L tokens, P bytes of a flat patch (patch*patch*3), D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .config import SIZES as VIT_SIZES
from .config import TransformerConfig, parse_variant
from .mlp import INIT, gelu, linear
from .transformer import Recipe, TransformerBlock, Visibility, layer_norm, stacked
from .vit import normalise, require_patches

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""Mean and deviation of RGB in [0, 1]: ImageNet's."""

SIZES = {
    **{name: VIT_SIZES[name] for name in ("Ti", "S", "B", "L")},
    "So400m": {"width": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304},
    "H": {"width": 1280, "depth": 32, "num_heads": 16, "mlp_dim": 5120},
    "g": {"width": 1408, "depth": 40, "num_heads": 16, "mlp_dim": 6144},
}
"""So400m: arXiv 2305.13035. H and g: ViT (arXiv 2010.11929) and its scaling (arXiv 2106.04560),
with 16 heads."""

_RECIPE = Recipe(
    activation=gelu,
    qkv=INIT,
    out=INIT,
    fc1=INIT,
    fc2=nn.initializers.variance_scaling(0.3072, "fan_out", "truncated_normal"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenVisionConfig(TransformerConfig):
    """Architecture and execution of the vision tower; its width is a multiple of 4, above 4.

    Attributes:
      patch: side of a patch in pixels.
    """

    patch: int = 14

    _COUNTS: ClassVar[tuple[str, ...]] = (*TransformerConfig._COUNTS, "patch")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 4 or self.width == 4:
            raise ValueError(
                f"OpenVisionConfig.width = {self.width} must be a multiple of 4, above 4: the "
                "position code has a quarter each for sine and cosine of columns and rows"
            )

    @classmethod
    def from_variant(cls, variant: str, **overrides: Any) -> OpenVisionConfig:
        """The configuration of a size and patch such as "L/14", with fields replaced by
        `overrides`.

        Args:
          variant: "SIZE/PATCH", SIZE a name of `SIZES`, PATCH the patch side in pixels.
          **overrides: fields of `OpenVisionConfig`.

        Returns:
          The configuration.

        Raises:
          ValueError: the size or a field is unknown, or a value does not fit.
        """
        return cls.with_fields({**parse_variant(variant, SIZES), **overrides})


class OpenVisionViT(nn.Module):
    """Patch sequences of images -> tokens and one embedding each.

    Attributes:
      config: the architecture.
    """

    config: OpenVisionConfig

    @nn.compact
    def __call__(
        self,
        patches_BLP: jax.Array,
        positions_BL3: jax.Array,
        lengths_B: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Encodes a batch; the numbers of a row depend neither on its padding nor on the other
        rows.

        Args:
          patches_BLP: uint8, each patch flattened (row, column, channel), RGB.
          positions_BL3: int32 (t, h, w) patch indices; t is not used.
          lengths_B: int32, valid prefix of each row; None where all rows are full.

        Returns:
          `tokens` [B, L, D], the patches before the final norm, compute dtype, zero past the
          length; `pooled` [B, D], the norm of their mean, float32.

        Raises:
          ValueError: `patches_BLP` is not uint8 or not of the configured patch size.
        """
        cfg = self.config
        require_patches(patches_BLP, cfg.patch)
        B, L = patches_BLP.shape[:2]
        embed = linear(
            cfg.width,
            cfg.dtype,
            "patch_embed",
            use_bias=False,
            kernel_init=nn.initializers.he_uniform(),
        )
        x = embed(normalise(patches_BLP, IMAGE_MEAN, IMAGE_STD))
        x = x + sincos_2d(positions_BL3, cfg.width)
        cls = self.param("cls", nn.initializers.normal(1e-6), (cfg.width,))
        # First in the row, so that the valid tokens stay a prefix. Its position code is zero.
        cls_B1D = jnp.broadcast_to(cls, (B, 1, cfg.width))
        x = jnp.concatenate([cls_B1D, x], axis=1).astype(cfg.dtype)

        visible = Visibility(None if lengths_B is None else lengths_B + 1)
        blocks = stacked(TransformerBlock, cfg, self.is_initializing())
        x, _ = blocks(cfg, _RECIPE, name="blocks")(x, visible)

        tokens = x[:, 1:]
        count = L
        if lengths_B is not None:
            valid_BL1 = (jnp.arange(L) < lengths_B[:, None])[..., None]
            tokens = jnp.where(valid_BL1, tokens, 0)
            count = jnp.maximum(lengths_B, 1)[:, None]
        mean_BD = tokens.sum(axis=1, dtype=jnp.float32) / count
        pooled = layer_norm(cfg, "layernorm_post", "float32")(mean_BD)
        return {"tokens": tokens, "pooled": pooled}


def sincos_2d(positions_BL3: jax.Array, width: int) -> jax.Array:
    """The fixed 2-D position code of MoCo v3 (arXiv 2104.02057).

    Args:
      positions_BL3: integer (t, h, w); t is not used.
      width: D, a multiple of 4.

    Returns:
      float32 [B, L, D]: sin w | cos w | sin h | cos h, each a quarter, channel i of a quarter at
      frequency 10000^(-i / (D/4 - 1)).
    """
    quarter = width // 4
    frequencies = (10000.0 ** (-np.arange(quarter) / (quarter - 1))).astype(np.float32)
    w, h = (positions_BL3[..., axis, None].astype(jnp.float32) * frequencies for axis in (2, 1))
    return jnp.concatenate([jnp.sin(w), jnp.cos(w), jnp.sin(h), jnp.cos(h)], axis=-1)
