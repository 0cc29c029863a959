"""Which columns of a source of pairs are what, and the known layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

_IMAGE = ("image", "jpg", "jpeg", "png", "webp", "image_path", "path", "file_name", "filename")
_KEY = ("key", "uid", "__key__", "id", "image_id", "img_id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a source are what; of several names the first that is there counts.

    Attributes:
      texts: per text its possible columns. A column that holds a list of texts gives text_0,
        text_1, ... if it is the only one that is named.
      image: of the encoded picture or its path.
      video: of the path of a video; only where videos are asked for.
      key: of the key.
      lines: a text of several lines is a list of texts.
    """

    texts: Mapping[str, tuple[str, ...]]
    image: tuple[str, ...] = _IMAGE
    video: tuple[str, ...] = ("video", "mp4", "webm", "video_path", "path", "file_name")
    key: tuple[str, ...] = _KEY
    lines: bool = False

    @property
    def text_columns(self) -> tuple[str, ...]:
        """All columns that may hold texts."""
        return tuple(dict.fromkeys(name for names in self.texts.values() for name in names))

    def replaced(self, text: str) -> Columns:
        """These columns with some named anew.

        Args:
          text: `image=picture,key=id,text_0=alt,text_1=long`; `a|b` names two that are tried in
            order. Texts that are named replace all texts.

        Raises:
          ValueError: something else.
        """
        fields: dict[str, Any] = {}
        texts = {}
        for part in filter(None, text.split(",")):
            role, equals, names = part.partition("=")
            if not equals or not names:
                raise ValueError(f"columns = {text!r}: {part!r} must be ROLE=COLUMN")
            if role in ("image", "video", "key"):
                fields[role] = tuple(names.split("|"))
            elif role.startswith("text_") and role.removeprefix("text_").isdecimal():
                texts[role] = tuple(names.split("|"))
            else:
                raise ValueError(
                    f"columns = {text!r}: {role!r} is none of image, video, key, text_0, text_1 ..."
                )
        return dataclasses.replace(self, **fields, **({"texts": texts} if texts else {}))


def _preset(web: str, synthetic: str = "", **options: Any) -> Columns:
    texts = {"text_0": tuple(web.split()), "text_1": tuple(synthetic.split())}
    return Columns(texts={name: names for name, names in texts.items() if names}, **options)


COLUMN_PRESETS: dict[str, Columns] = {
    "default": _preset(
        "text_0 caption captions txt text alt_text", "text_1 re_caption synthetic_caption"
    ),
    # The tables that are published; in a tar the web caption is the member .txt.
    "recap-datacomp": _preset("org_caption caption txt", "re_caption"),
    # The TFDS folders that OpenVision's own configs read.
    "openvision": _preset("txt", "llava_caption"),
    # Several captions an image: text_0, text_1, ...
    "coco": _preset("captions caption sentences raw"),
    "flickr30k": _preset("caption captions sentences raw", lines=True),
    # The name of the class as a text.
    "imagenet": _preset("class_name label_name classname label cls"),
    "laion": _preset("caption TEXT txt text"),
}
"""Columns of known layouts."""
