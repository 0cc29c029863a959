"""Mosaics for LLaVA: training data and evaluation assets; the base install suffices.

`asset_key` and `key_of` name the assets of a video, for whoever writes them and whoever looks them
up.
"""

from .keys import asset_key, key_of

__all__ = ["asset_key", "key_of"]
