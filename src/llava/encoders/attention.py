"""What the encoders that transformers lacks share: attention by its implementations, and a start.

Shape suffixes: X sequences, S tokens of each, D width, H heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def attend(
    module: nn.Module,
    query_XSD: torch.Tensor,
    key_XSD: torch.Tensor,
    value_XSD: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """Attention of every token to all of its sequence.

    Args:
      module: has the `config` that names the implementation; "eager" and None are PyTorch's own.
      query_XSD, key_XSD, value_XSD: projected, all heads side by side.
      heads: H.

    Returns:
      [X, S, D].
    """
    parts = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query_XSD, key_XSD, value_XSD)]
    name = getattr(module.config, "_attn_implementation", None)
    if name in (None, "eager", "sdpa"):
        return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    scaling = parts[0].shape[-1] ** -0.5
    mixed, _ = ALL_ATTENTION_FUNCTIONS[name](module, *parts, None, scaling=scaling, dropout=0.0)
    return mixed.flatten(2)


@torch.no_grad()
def draw(module: nn.Module, std: float) -> None:
    """Fresh weights of one module: small normal numbers, no biases, neutral normalisations.

    Parameters that a module of another type holds by itself keep what its constructor gave them.
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)
