"""Selection of patches from videos and images; the base install suffices."""

from .config import PRESETS, SelectionConfig
from .errors import MediaError
from .pack import pack_groups, pack_image, pack_video

__all__ = ["PRESETS", "MediaError", "SelectionConfig", "pack_groups", "pack_image", "pack_video"]
