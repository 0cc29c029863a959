"""Pre-norm blocks without a position code of their own, and the stacking of any block over depth.

Shape suffixes: B batch, L tokens, D width, H heads, K head width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from .attention import attention
from .config import REMAT, TransformerConfig
from .mlp import Mlp, linear

Init = nn.initializers.Initializer


@dataclasses.dataclass(frozen=True)
class Recipe:
    """In what the blocks of two towers differ: the activation and how kernels start."""

    activation: Callable[[jax.Array], jax.Array]
    qkv: Init
    out: Init
    fc1: Init
    fc2: Init


def text_recipe(width: int, depth: int) -> Recipe:
    """CLIP's text tower (arXiv 2103.00020): the tanh GELU, and projections into the residual stream
    that shrink with its number of layers.

    OpenVision states the same, but its blocks never learn their depth and always take 12.
    """
    into_residual = nn.initializers.normal(width**-0.5 * (2 * depth) ** -0.5)
    return Recipe(
        activation=nn.gelu,
        qkv=nn.initializers.normal(width**-0.5),
        out=into_residual,
        fc1=nn.initializers.normal((2 * width) ** -0.5),
        fc2=into_residual,
    )


class Visibility(NamedTuple):
    """Which tokens take part; as for `attention`."""

    lengths_B: jax.Array | None = None
    segment_ids_BL: jax.Array | None = None


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    config: TransformerConfig
    recipe: Recipe
    causal_from: int | None

    @nn.compact
    def __call__(self, x_BLD: jax.Array, visible: Visibility) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        cfg, (B, L, D) = self.config, x_BLD.shape
        qkv = linear(3 * D, cfg.dtype, "qkv", kernel_init=self.recipe.qkv)(x_BLD)
        q, k, v = jnp.moveaxis(qkv.reshape(B, L, 3, cfg.num_heads, -1), 2, 0)
        y_BLHK = attention(
            q,
            k,
            v,
            lengths_B=visible.lengths_B,
            segment_ids_BL=visible.segment_ids_BL,
            causal_from=self.causal_from,
            impl=cfg.attention_impl,
        )
        out = linear(D, cfg.dtype, "out", kernel_init=self.recipe.out)
        return out(y_BLHK.reshape(B, L, D))


class TransformerBlock(nn.Module):
    """x + Attention(norm1(x)), then x + Mlp(norm2(x)).

    Attributes:
      config: width, heads, dtype.
      recipe: activation and initialisers.
      causal_from: as for `attention`.
    """

    config: TransformerConfig
    recipe: Recipe
    causal_from: int | None = None

    @nn.compact
    def __call__(self, x_BLD: jax.Array, visible: Visibility) -> tuple[jax.Array, None]:
        """Returns the new x, and nothing for the scan to stack."""
        cfg, recipe = self.config, self.recipe
        attn = SelfAttention(cfg, recipe, self.causal_from, name="attn")
        mlp = Mlp(cfg.mlp_dim, cfg.dtype, recipe.activation, recipe.fc1, recipe.fc2, name="mlp")
        x = x_BLD + attn(layer_norm(cfg, "norm1")(x_BLD), visible)
        return x + mlp(layer_norm(cfg, "norm2")(x)), None


def stacked(
    block: type[nn.Module], config: TransformerConfig, initializing: bool
) -> type[nn.Module]:
    """A block class -> the class of `config.depth` of them, scanned and recomputed as configured.

    Parameters lie stacked [depth, ...]. The block returns (x, what to stack over the layers), and
    takes x and what is the same for every layer.

    Args:
      block: the module of one layer.
      config: depth, scan, remat, dtype.
      initializing: whether the parameters are being made.
    """
    # Not while initialising: the parameters would be stored after the cast, and the float32 masters
    # lost.
    if not initializing:
        block = nn.map_variables(block, "params", trans_in_fn=cast_and_gather(config.dtype))
    block = nn.remat(block, prevent_cse=not config.scan, policy=REMAT[config.remat])
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=config.depth,
        unroll=1 if config.scan else config.depth,
    )


def cast_and_gather(dtype: str) -> Any:
    """One layer's parameters as the layer computes with them, made inside of the scan: one layer at
    a time.

    Matrices are cast to `dtype` first, so that the gather from a sharded mesh moves the smaller
    type; vectors (biases and norms) stay float32. Without a mesh nothing is gathered.
    """

    def transform(variables: Any) -> Any:
        sharded = not jax.sharding.get_abstract_mesh().empty

        def leaf(w: jax.Array) -> jax.Array:
            cast = w.ndim > 1 and w.dtype != dtype
            if cast:
                w = w.astype(dtype)
            if sharded and cast:
                # Else the partitioner gathers before it casts, which moves twice the bytes.
                w = jax.lax.optimization_barrier(w)
            if sharded:
                w = jax.lax.with_sharding_constraint(w, jax.sharding.PartitionSpec())
            return w

        return jax.tree.map(leaf, variables)

    return transform


def layer_norm(config: TransformerConfig, name: str, dtype: str | None = None) -> nn.LayerNorm:
    """A layer norm that computes in float32 and returns `dtype`, the configured one by default."""
    # Two passes: E[x^2] - E[x]^2 cancels in float32 where the mean is large.
    return nn.LayerNorm(
        epsilon=config.layer_norm_eps,
        dtype=dtype or config.dtype,
        use_fast_variance=False,
        name=name,
    )
