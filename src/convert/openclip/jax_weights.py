"""The sizes of a model from the shapes of OpenVision's JAX arrays: no configuration lies beside
them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...models import openvision, text
from ...models.captioning import CaptionConfig
from ...models.openvision import OpenVisionConfig
from ...models.text import TextConfig
from .settings import Parts

_BLOCK = "Transformer/encoderblock_{}/"
_QUERY = "MultiHeadDotProductAttention_0/query/kernel"


def infer_parts(arrays: Mapping[str, np.ndarray]) -> Parts:
    """Sizes of the model that holds these arrays; the caption decoder of OpenVision 1 if any.

    Args:
      arrays: by path name: `img/...`, `txt/...`, `txt_decoder/...`, `t`.

    Returns:
      The sizes; that the arrays fit them is for `from_jax` to check.

    Raises:
      ValueError: an array that tells a size is missing, the arrays of attention have no axis of
        heads and the tower is of no known size.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in arrays:
            raise ValueError(f"1 array(s) missing, the first {name!r}")
        if arrays[name].ndim != axes:
            raise ValueError(
                f"array {name!r} has shape {list(arrays[name].shape)}, not {axes} axes"
            )
        return arrays[name].shape

    def tower(prefix: str, sizes: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
        blocks = re.compile(re.escape(prefix) + _BLOCK.format(r"(\d+)"))
        depth = len({match[1] for name in arrays if (match := blocks.match(name))})
        first = prefix + _BLOCK.format(0)
        width, mlp_dim = shape(f"{first}MlpBlock_0/Dense_0/kernel", 2)
        fields = {"width": width, "depth": depth, "mlp_dim": mlp_dim}
        if f"{first}{_QUERY}" in arrays and arrays[f"{first}{_QUERY}"].ndim == 3:
            return {**fields, "num_heads": arrays[f"{first}{_QUERY}"].shape[1]}
        for size in sizes.values():
            if size["width"] == width:
                return {**fields, "num_heads": size["num_heads"]}
        raise ValueError(
            f"{prefix}: width {width} is none of OpenVision's sizes, and {_QUERY} has no axis of "
            "heads: their number is unknown"
        )

    patch = shape("img/embedding/kernel", 4)[0]
    vision = OpenVisionConfig(patch=patch, **tower("img/", openvision.SIZES))
    if not any(name.startswith("txt/") for name in arrays):
        return Parts(vision)
    vocabulary = shape("txt/Embed_0/embedding", 2)[0]
    context = arrays.get("txt/pos_embedding", np.zeros((0, 0))).shape[-2]
    texts = TextConfig(
        vocab_size=vocabulary,
        context_length=context,
        embed_dim=shape("txt/head/kernel", 2)[1],
        **tower("txt/", text.SIZES),
    )
    decoder = None
    if any(name.startswith("txt_decoder/") for name in arrays):
        decoder = CaptionConfig(
            kind="queries",
            vocab_size=shape("txt_decoder/head/kernel", 2)[1],
            output_length=shape("txt_decoder/learnable_tokens", 2)[0],
            image_width=vision.width,
            text_width=texts.width,
            **tower("txt_decoder/", text.SIZES),
        )
    return Parts(vision, texts, decoder, bias="b" in arrays)
