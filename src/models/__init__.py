"""Flax (linen) models; no data, no mesh."""

from .attention import attention
from .encoder import Encoder, EncoderOutput
from .vit import ViT, ViTConfig

__all__ = ["Encoder", "EncoderOutput", "ViT", "ViTConfig", "attention"]
