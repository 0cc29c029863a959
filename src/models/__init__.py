"""Flax (linen) models; no data, no mesh."""

from .attention import attention
from .captioning import CaptionConfig, CaptionDecoder
from .clip import ClipConfig
from .config import ViTConfig
from .encoder import Encoder, EncoderOutput
from .openvision import OpenVisionConfig, OpenVisionViT
from .text import TextConfig, TextEncoder
from .vit import ViT

__all__ = [
    "CaptionConfig",
    "CaptionDecoder",
    "ClipConfig",
    "Encoder",
    "EncoderOutput",
    "OpenVisionConfig",
    "OpenVisionViT",
    "TextConfig",
    "TextEncoder",
    "ViT",
    "ViTConfig",
    "attention",
]
