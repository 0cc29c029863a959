"""Flax (linen) models; no data, no mesh."""

from .attention import attention
from .config import ViTConfig
from .encoder import Encoder, EncoderOutput
from .vit import ViT

__all__ = ["Encoder", "EncoderOutput", "ViT", "ViTConfig", "attention"]
