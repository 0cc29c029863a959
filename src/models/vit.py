"""The vision transformer of OneVision-Encoder over patch sequences, in linen (arXiv 2602.08683).

patch embedding -> layernorm_pre -> pre-norm blocks with a 3-D rotary code -> layernorm_post ->
attention pooling. Parameters are float32 and the blocks' are stacked [depth, ...];
docs/architecture.md states the tree.

Shape suffixes: B batch, L tokens, S images of a packed row, P bytes of a flat patch
  (patch*patch*3), D width, H heads, K head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .attention import attention
from .config import ViTConfig
from .mlp import Mlp, linear
from .pooling import AttentionPool
from .rope import apply_rope, rope_table
from .transformer import cast_and_gather, layer_norm, stacked

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of RGB in [0, 1]: OpenAI CLIP's constants."""


class Context(NamedTuple):
    """What every block gets beside the tokens: the rotary table and who may meet whom."""

    rope: tuple[jax.Array, jax.Array]
    lengths_B: jax.Array | None
    segment_ids_BL: jax.Array | None


class Attention(nn.Module):
    """Self-attention with the rotary code on queries and keys."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BLD: jax.Array, context: Context) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        cfg, (B, L, D) = self.config, x_BLD.shape
        qkv = linear(3 * D, cfg.dtype, "qkv")(x_BLD)
        q, k, v = jnp.moveaxis(qkv.reshape(B, L, 3, cfg.num_heads, -1), 2, 0)
        q, k = apply_rope(q, *context.rope), apply_rope(k, *context.rope)
        y_BLHK = attention(
            q,
            k,
            v,
            lengths_B=context.lengths_B,
            segment_ids_BL=context.segment_ids_BL,
            impl=cfg.attention_impl,
        )
        return linear(D, cfg.dtype, "out")(y_BLHK.reshape(B, L, D))


class Block(nn.Module):
    """x + Attention(norm1(x)), then x + Mlp(norm2(x))."""

    config: ViTConfig
    collect: bool = False  # hand the output out per layer, for `hidden_states`

    @nn.compact
    def __call__(self, x_BLD: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        """Returns the new x and, for the scan to stack, the same or None."""
        cfg = self.config
        x = x_BLD + Attention(cfg, name="attn")(layer_norm(cfg, "norm1")(x_BLD), context)
        x = x + Mlp(cfg.mlp_dim, cfg.dtype, name="mlp")(layer_norm(cfg, "norm2")(x))
        return x, (x if self.collect else None)


class ViT(nn.Module):
    """Patch sequences -> tokens and one embedding each.

    Attributes:
      config: the architecture.
    """

    config: ViTConfig

    @nn.compact
    def __call__(
        self,
        patches_BLP: jax.Array,
        positions_BL3: jax.Array,
        lengths_B: jax.Array | None = None,
        *,
        segment_ids_BL: jax.Array | None = None,
        num_segments: int = 0,
        hidden_states: bool = False,
    ) -> dict[str, Any]:
        """Encodes a batch; the numbers of a row depend neither on its padding nor on the other
        rows.

        Args:
          patches_BLP: uint8, each patch flattened (row, column, channel), RGB.
          positions_BL3: int32 (t, h, w) patch indices.
          lengths_B: int32, valid prefix of each row; None where all rows are full.
          segment_ids_BL: int32, for rows that hold several images (`codecvit.sequence.pack_rows`):
            image 0, 1, ... of the row, -1 for padding. Every image comes out as if it were alone.
          num_segments: S, the most images of a row; 0 without segment ids.
          hidden_states: also return the residual stream.

        Returns:
          `tokens` [B, L, D] after layernorm_post, zero past the length; `pooled` [B, D], with
          segment ids [B, S, D], zero for images that are not there; with `hidden_states` a list of
          depth + 1 arrays [B, L, D], the first after layernorm_pre, the
          last before layernorm_post. Compute dtype.

        Raises:
          ValueError: `patches_BLP` is not uint8 or not of the configured patch size; lengths and
            segment ids are both given, or ids without their number.
        """
        cfg = self.config
        require_patches(patches_BLP, cfg.patch)
        embed = linear(cfg.width, cfg.dtype, "patch_embed", use_bias=False)
        x = layer_norm(cfg, "layernorm_pre")(embed(normalise(patches_BLP)))
        first = x
        # Once, outside of the scan: the angles are the same in every layer.
        rope = rope_table(positions_BL3, cfg.width // cfg.num_heads, cfg.rope_theta)
        context = Context(rope, lengths_B, segment_ids_BL)
        blocks = stacked(Block, cfg, self.is_initializing())
        x, layers = blocks(cfg, hidden_states, name="blocks")(x, context)
        tokens = layer_norm(cfg, "layernorm_post")(x)
        valid_BSL = _valid_tokens(tokens.shape[:2], lengths_B, segment_ids_BL, num_segments)
        head = AttentionPool
        if not self.is_initializing():  # as for the blocks: parameters travel, not activations
            head = nn.map_variables(head, "params", trans_in_fn=cast_and_gather(cfg.dtype))
        pool = head(cfg.num_heads, cfg.mlp_dim, cfg.dtype, name="head")
        pooled_BSD = pool(tokens, valid_BSL)
        if segment_ids_BL is None:
            out = {"pooled": pooled_BSD[:, 0]}
        else:
            out = {"pooled": jnp.where(valid_BSL.any(-1, keepdims=True), pooled_BSD, 0)}
        if lengths_B is not None or segment_ids_BL is not None:
            tokens = jnp.where(valid_BSL.any(1)[..., None], tokens, 0)
        out["tokens"] = tokens
        if hidden_states:
            out["hidden_states"] = [first, *layers]
        return out


def normalise(
    patches_BLP: jax.Array,
    mean: tuple[float, float, float] = IMAGE_MEAN,
    std: tuple[float, float, float] = IMAGE_STD,
) -> jax.Array:
    """uint8 -> float32 (x/255 - mean) / std; the last axis runs over channels fastest."""
    repeats = patches_BLP.shape[-1] // 3
    scale = np.tile(1 / (255 * np.array(std)), repeats).astype(np.float32)
    shift = np.tile(np.array(mean) / np.array(std), repeats).astype(np.float32)
    return patches_BLP.astype(jnp.float32) * scale - shift


def _valid_tokens(
    shape: tuple[int, int],
    lengths_B: jax.Array | None,
    segment_ids_BL: jax.Array | None,
    num_segments: int,
) -> jax.Array:
    """Bool [B, S, L]: which tokens belong to each image of a row; S = 1 without segment ids."""
    if segment_ids_BL is not None:
        if lengths_B is not None or num_segments < 1:
            raise ValueError(
                f"segment ids need num_segments >= 1, got {num_segments}, and no lengths: padding "
                "has the id -1"
            )
        return segment_ids_BL[:, None] == jnp.arange(num_segments)[:, None]
    if lengths_B is None:
        return jnp.ones((shape[0], 1, shape[1]), bool)
    return (jnp.arange(shape[1]) < lengths_B[:, None])[:, None]


def require_patches(patches_BLP: jax.Array, patch: int) -> None:
    """Raises a ValueError unless the patches are uint8 of side `patch`."""
    if patches_BLP.dtype != jnp.uint8:
        raise ValueError(
            f"patches must be uint8 (they are normalised here), got {patches_BLP.dtype}"
        )
    if patches_BLP.shape[-1] != patch * patch * 3:
        raise ValueError(
            f"patches have {patches_BLP.shape[-1]} values each, but the model's patch = {patch} "
            f"takes {patch * patch * 3} ({patch} x {patch} x 3)"
        )
