"""The table between our image-text parameters, OpenCLIP's tensors and OpenVision's JAX tree.

OpenCLIP (github.com/mlfoundations/open_clip) has no caption decoder: its tensors keep the names of
our tree and go to a file of their own.

Letters of the shapes: K = P*P*3 values of a flat patch, D width of the part, F of its MLPs, E
embedding, V vocabulary, T context, O output tokens of the decoder, I and J widths of the image and
text tokens that it reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..names import CONV, LINEAR, SAME

if TYPE_CHECKING:
    from .settings import Parts

_QKV = "query", "key", "value"


@dataclasses.dataclass(frozen=True)
class Row:
    """One leaf of ours, its tensor in OpenCLIP and its arrays in OpenVision's JAX tree.

    Attributes:
      ours: path in our tree; below `blocks` for a row of BLOCK.
      shape: of our leaf in the letters above, without the depth axis of `blocks`.
      openclip: tensor name below the tower's prefix; empty for the decoder.
      jax: array names below the tower's prefix, joined along the last axis of ours; none where
        OpenVision has no such array.
      how: SAME, LINEAR or CONV of `convert.names`, from ours to OpenCLIP.
    """

    ours: str
    shape: str
    openclip: str
    jax: tuple[str, ...]
    how: str = SAME


def _row(ours: str, shape: str, openclip: str, *jax: str, how: str = SAME) -> Row:
    return Row(ours, shape, openclip, jax, how)


def _attention(leaf: str) -> tuple[str, ...]:
    return tuple(f"MultiHeadDotProductAttention_0/{name}/{leaf}" for name in _QKV)


# fmt: off
IMAGE = (
    _row("encoder/patch_embed/kernel",    "K D", "conv1.weight", "embedding/kernel", how=CONV),
    _row("encoder/cls",                   "D",   "class_embedding", "cls"),
    _row("encoder/layernorm_post/scale",  "D",   "ln_post.weight", "encoder_norm/scale"),
    _row("encoder/layernorm_post/bias",   "D",   "ln_post.bias", "encoder_norm/bias"),
)
IMAGE_HEAD = (
    _row("image_head/kernel",             "D E", "proj", "head/kernel"),
)
TEXT = (
    _row("text/token_embed/embedding",    "V D", "token_embedding.weight", "Embed_0/embedding"),
    _row("text/pos_embedding",            "T D", "positional_embedding", "pos_embedding"),
    _row("text/layernorm_post/scale",     "D",   "ln_final.weight", "encoder_norm/scale"),
    _row("text/layernorm_post/bias",      "D",   "ln_final.bias", "encoder_norm/bias"),
    _row("text/head/kernel",              "D E", "text_projection", "head/kernel"),
)
SCALE = (
    _row("logit_scale/value",             "",    "logit_scale", "t"),
)
BIAS = (
    _row("logit_bias/value",              "",    "logit_bias", "b"),
)
BLOCK = (
    _row("norm1/scale",        "D",    "ln_1.weight", "LayerNorm_0/scale"),
    _row("norm1/bias",         "D",    "ln_1.bias", "LayerNorm_0/bias"),
    _row("attn/qkv/kernel",    "D 3D", "attn.in_proj_weight", *_attention("kernel"), how=LINEAR),
    _row("attn/qkv/bias",      "3D",   "attn.in_proj_bias", *_attention("bias")),
    _row("attn/out/kernel",    "D D",  "attn.out_proj.weight",
         "MultiHeadDotProductAttention_0/out/kernel", how=LINEAR),
    _row("attn/out/bias",      "D",    "attn.out_proj.bias",
         "MultiHeadDotProductAttention_0/out/bias"),
    _row("norm2/scale",        "D",    "ln_2.weight", "LayerNorm_1/scale"),
    _row("norm2/bias",         "D",    "ln_2.bias", "LayerNorm_1/bias"),
    _row("mlp/fc1/kernel",     "D F",  "mlp.c_fc.weight", "MlpBlock_0/Dense_0/kernel", how=LINEAR),
    _row("mlp/fc1/bias",       "F",    "mlp.c_fc.bias", "MlpBlock_0/Dense_0/bias"),
    _row("mlp/fc2/kernel",     "F D",  "mlp.c_proj.weight", "MlpBlock_0/Dense_1/kernel",
         how=LINEAR),
    _row("mlp/fc2/bias",       "D",    "mlp.c_proj.bias", "MlpBlock_0/Dense_1/bias"),
)
DECODER = (
    _row("decoder/image_proj/kernel",     "I D", "", "image_projection_layer/kernel"),
    _row("decoder/layernorm_post/scale",  "D",   "", "decoder_norm/scale"),
    _row("decoder/layernorm_post/bias",   "D",   "", "decoder_norm/bias"),
    _row("decoder/head/kernel",           "D V", "", "head/kernel"),
)
DECODER_QUERIES = (
    _row("decoder/text_proj/kernel",      "J D", "", "text_projection_layer/kernel"),
    _row("decoder/queries",               "O D", "", "learnable_tokens"),
)
DECODER_CAUSAL = (  # OpenVision 2 has released no JAX weights
    _row("decoder/start",                 "D",   ""),
    _row("decoder/token_embed/embedding", "V D", ""),
)
# fmt: on


class Entry(NamedTuple):
    """One tensor of a model.

    Attributes:
      row: of the table.
      ours: path in our tree; of a block's the path of the stack.
      shape: of our leaf, of a block's without the depth axis.
      openclip: OpenCLIP's name.
      jax: OpenVision's names.
      layer: of a block's.
      heads: attention heads around it.
    """

    row: Row
    ours: str
    shape: tuple[int, ...]
    openclip: str
    jax: tuple[str, ...]
    layer: int | None = None
    heads: int = 1

    @property
    def piece(self) -> tuple[int, ...]:
        """Shape of each of the JAX arrays that make our leaf, heads flattened."""
        return (*self.shape[:-1], self.shape[-1] // len(self.jax)) if self.shape else ()


def entries(parts: Parts) -> list[Entry]:
    """Every tensor of a model but its decoder's."""
    vision, text = parts.vision, parts.text
    sizes = {"K": 3 * vision.patch**2}
    rows = IMAGE
    if text is not None:
        sizes["E"] = text.embed_dim
        rows = (*IMAGE, *IMAGE_HEAD)
    found = _part(rows, vision, sizes, "encoder/", "visual.", "img/")
    if text is not None:
        sizes = {"E": text.embed_dim, "V": text.vocab_size, "T": text.context_length}
        found += _part(TEXT, text, sizes, "text/", "", "txt/")
        for row in (*SCALE, *BIAS) if parts.bias else SCALE:
            found.append(Entry(row, row.ours, (), row.openclip, row.jax))
    return found


def decoder_entries(parts: Parts) -> list[Entry]:
    """Every tensor of the decoder; none without one."""
    decoder = parts.decoder
    if decoder is None:
        return []
    sizes = {"V": decoder.vocab_size, "I": decoder.image_width}
    if decoder.kind == "causal":
        rows = (*DECODER, *DECODER_CAUSAL)
    else:
        rows = (*DECODER, *DECODER_QUERIES)
        sizes |= {"O": decoder.output_length, "J": decoder.text_width}
    return _part(rows, decoder, sizes, "decoder/", "", "txt_decoder/")


def _part(
    rows: tuple[Row, ...],
    config: Any,
    sizes: Mapping[str, int],
    ours: str,
    openclip: str,
    jax: str,
) -> list[Entry]:
    """The tensors of a transformer: `rows`, then its blocks'; the rest are prefixes."""
    sizes = {"D": config.width, "3D": 3 * config.width, "F": config.mlp_dim, **sizes}

    def entry(row: Row, path: str, theirs: str, array: str, layer: int | None) -> Entry:
        shape = tuple(sizes[letter] for letter in row.shape.split())
        names = tuple(array + name for name in row.jax)
        return Entry(row, path, shape, theirs + row.openclip, names, layer, config.num_heads)

    found = [entry(row, row.ours, openclip, jax, None) for row in rows]
    for layer in range(config.depth):
        theirs = f"{openclip}transformer.resblocks.{layer}."
        array = f"{jax}Transformer/encoderblock_{layer}/"
        found += [entry(row, f"{ours}blocks/{row.ours}", theirs, array, layer) for row in BLOCK]
    return found
