"""Caption decoders: a prefix that is seen by all, then the caption's positions, causal.

Both kinds are prefix language models over one row of tokens.

* "queries" (OpenVision, arXiv 2505.04601): the prefix holds the image and a first caption as the
  text tower reads it; after it come learned queries, one per token of the second caption. Nothing
  of that caption goes in.
* "causal" (OpenVision 2, arXiv 2509.01644): the prefix is the image; after it comes the caption
  itself, shifted by one (teacher forcing). It has no position code: the causal mask tells order.

Shape suffixes: B batch, L image tokens, T text tokens, O output tokens, S all of a row, D width of
the tokens at hand, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from . import openvision, text
from .config import TransformerConfig, require_known
from .mlp import INIT, linear
from .transformer import TransformerBlock, Visibility, layer_norm, stacked, text_recipe

KINDS = ("queries", "causal")

SIZES = {**text.SIZES, "g": text.SIZES["H"]}
"""Decoders, by the size of the vision tower that they are trained with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionConfig(TransformerConfig):
    """Architecture and execution of a caption decoder.

    Attributes:
      kind: "queries" or "causal".
      vocab_size: V.
      output_length: O, the number of queries; for "causal" the most tokens of a caption.
      image_width: width of the image tokens.
      text_width: width of the text tower's tokens; None for "causal", which has none.
    """

    kind: str
    vocab_size: int = 32000
    output_length: int = 128
    image_width: int
    text_width: int | None = None

    _COUNTS: ClassVar[tuple[str, ...]] = (
        *TransformerConfig._COUNTS,
        "vocab_size",
        "output_length",
        "image_width",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known("CaptionConfig.kind", self.kind, KINDS)
        if self.kind == "queries" and (self.text_width is None or self.text_width < 1):
            raise ValueError(
                f"CaptionConfig.text_width = {self.text_width}: kind = 'queries' reads the text "
                "tower's tokens, give their width"
            )
        if self.kind == "causal" and self.text_width is not None:
            raise ValueError(
                f"CaptionConfig.text_width = {self.text_width}: kind = 'causal' reads no text "
                "tower, leave it None"
            )

    @classmethod
    def from_variant(cls, size: str, *, kind: str, **overrides: Any) -> CaptionConfig:
        """The configuration of a size, beside OpenVision's towers of that size, with fields
        replaced by `overrides`.

        Args:
          size: a name of `SIZES`.
          kind: "queries" or "causal".
          **overrides: fields of `CaptionConfig`.

        Returns:
          The configuration.

        Raises:
          ValueError: the size, the kind or a field is unknown, or a value does not fit.
        """
        require_known("caption decoder size", size, SIZES)
        values = {**SIZES[size], "kind": kind, "image_width": openvision.SIZES[size]["width"]}
        if kind == "queries":
            values["text_width"] = text.SIZES[size]["width"]
        return cls.with_fields({**values, **overrides})


class CaptionDecoder(nn.Module):
    """Image tokens, and the caption so far -> one hidden state per token to predict.

    The projection to the vocabulary, `head/kernel` [D, V], lies in the parameters but is not
    applied: the loss does so, a chunk of tokens at a time (`codecvit.losses.captioning`).

    Attributes:
      config: the architecture.
    """

    config: CaptionConfig

    @nn.compact
    def __call__(
        self,
        image_tokens_BLD: jax.Array,
        context: jax.Array,
        lengths_B: jax.Array | None = None,
    ) -> jax.Array:
        """Decodes a batch.

        Args:
          image_tokens_BLD: of width `image_width`.
          context: for "queries" the text tower's tokens [B, T, text_width], of which the last, its
            [CLS], is left out; for "causal" the ids to predict, int32 [B, O], of which output i
            sees those before i.
          lengths_B: int32, valid prefix of each row's image tokens; None where all are.

        Returns:
          Array [B, O, D] after the final norm, compute dtype; row i predicts token i.

        Raises:
          ValueError: more ids than `output_length`, or tokens of another width.
        """
        cfg = self.config
        _require_width("image", image_tokens_BLD, cfg.image_width)
        prefix = [self._project(image_tokens_BLD, "image_proj")]
        if cfg.kind == "queries":
            _require_width("text", context, cfg.text_width)
            prefix.append(self._project(context[:, :-1], "text_proj"))
            outputs = self._queries(len(context))
        else:
            outputs = self._shifted(context)
        x = jnp.concatenate([*prefix, outputs.astype(cfg.dtype)], axis=1)
        num_outputs = outputs.shape[1]

        segment_ids_BS = None
        if lengths_B is not None:
            # The padding of the images lies inside of the row: it is a segment of its own.
            index = jnp.arange(x.shape[1])
            padding = (index >= lengths_B[:, None]) & (index < image_tokens_BLD.shape[1])
            segment_ids_BS = jnp.where(padding, -1, 0)
        blocks = stacked(TransformerBlock, cfg, self.is_initializing())(
            cfg, text_recipe(cfg.width, cfg.depth), x.shape[1] - num_outputs, name="blocks"
        )
        x, _ = blocks(x, Visibility(segment_ids_BL=segment_ids_BS))
        _Kernel(cfg.vocab_size, name="head")(cfg.width)
        return layer_norm(cfg, "layernorm_post")(x[:, -num_outputs:])

    def _project(self, tokens: jax.Array, name: str) -> jax.Array:
        init = nn.initializers.normal(tokens.shape[-1] ** -0.5)
        cfg = self.config
        return linear(cfg.width, cfg.dtype, name, use_bias=False, kernel_init=init)(tokens)

    def _queries(self, rows: int) -> jax.Array:
        cfg = self.config
        queries_OD = self.param("queries", INIT, (cfg.output_length, cfg.width))
        return jnp.broadcast_to(queries_OD, (rows, *queries_OD.shape))

    def _shifted(self, ids_BO: jax.Array) -> jax.Array:
        """Embeddings of what comes before each id; before the first, a learned start."""
        cfg, (B, length) = self.config, ids_BO.shape
        if length > cfg.output_length:
            raise ValueError(
                f"captions have {length} ids, more than the decoder's output_length = "
                f"{cfg.output_length}"
            )
        # A start of its own, so that no id of any tokenizer means two things.
        start = self.param("start", INIT, (cfg.width,))
        embed = nn.Embed(cfg.vocab_size, cfg.width, embedding_init=INIT, name="token_embed")
        return jnp.concatenate(
            [jnp.broadcast_to(start, (B, 1, cfg.width)), embed(ids_BO[:, :-1])], axis=1
        )


def keep_tokens(
    tokens_BLD: jax.Array,
    lengths_B: jax.Array | None,
    keep_ratio: float,
    key: jax.Array,
    index_B: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
    """A random subset of each row's valid tokens: a decoder of fewer image tokens is cheaper, and
    its captions are no worse (OpenVision 2, arXiv 2509.01644, keeps about a third).

    Args:
      tokens_BLD: the image's tokens.
      lengths_B: int32, valid prefix of each row; None where all rows are full.
      keep_ratio: in (0, 1]; of n valid tokens ceil(keep_ratio * n) are kept.
      key: PRNG key, of the step.
      index_B: int32, number of each row's example: the draw depends on it and the key, not on where
        in a batch, or on which device, the row lies.

    Returns:
      Tokens [B, ceil(keep_ratio * L), D], in their order, zero past the length; and the new
      lengths, None where they were.

    Raises:
      ValueError: the ratio is out of range.
    """
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio = {keep_ratio} must lie in (0, 1]; 1 keeps all tokens")
    if keep_ratio == 1:
        return tokens_BLD, lengths_B
    B, L = tokens_BLD.shape[:2]
    kept = np.array([_share(keep_ratio, n) for n in range(L + 1)], np.int32)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, index_B)
    draw_BL = jax.vmap(lambda k: jax.random.uniform(k, (L,)))(keys_B)
    valid_BL = jnp.ones((B, L), bool)
    if lengths_B is not None:
        valid_BL = jnp.arange(L) < lengths_B[:, None]
    counts_B = valid_BL.sum(axis=1)
    order_BL = jnp.argsort(jnp.where(valid_BL, draw_BL, 2.0), axis=1)
    slots_BK = jnp.arange(kept[L]) < jnp.asarray(kept)[counts_B][:, None]
    # Those that are left over go to the end.
    chosen_BK = jnp.sort(jnp.where(slots_BK, order_BL[:, : kept[L]], L), axis=1)
    taken = jnp.take_along_axis(tokens_BLD, chosen_BK[..., None], axis=1, mode="fill", fill_value=0)
    return taken, None if lengths_B is None else jnp.asarray(kept)[counts_B]


def _share(ratio: float, n: int) -> int:
    """ceil(ratio * n), where 0.07 * 100 is 7."""
    return math.ceil(round(ratio * n, 9))


class _Kernel(nn.Module):
    """A linear layer's kernel that someone else applies."""

    features: int

    @nn.compact
    def __call__(self, width: int) -> jax.Array:
        """Returns [width, features]."""
        return self.param("kernel", nn.initializers.normal(width**-0.5), (width, self.features))


def _require_width(what: str, tokens: jax.Array, width: int) -> None:
    if tokens.shape[-1] != width:
        raise ValueError(
            f"{what} tokens have width {tokens.shape[-1]}, but the decoder's {what}_width = {width}"
        )
