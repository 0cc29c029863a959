"""What a row of LLaVA data shows: mosaics, a video packed on the fly, frames, images, or nothing.

Training and evaluation read rows here, with the same rules. Torch is not needed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...codec.llava.options import MosaicOptions
from ...codec.llava.recipe import Folders
from ...codec.llava.rows import (
    IMAGE_TOKEN,
    VIDEO_TOKEN,
    RowError,
    conversation,
    images_of,
    video_of,
    with_mosaics,
)
from ...files import join
from .assets import Pack, mosaic_visual, row_pack
from .frame_visuals import FrameRule, frames_visual, shown_image, shown_video, with_frames
from .visuals import NATIVE, ImageRule, Visual

KINDS = ("text", "image", "images", "video")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the visuals of rows are read.

    Attributes:
      patch: side of the encoder's patch in pixels; None: no encoder reads patches.
      images: at which size images are read.
      assets: how mosaics are made of plain videos; None refuses them.
      asset_hash: of the options that all packs must have been made with; None takes any.
      frames: how frames are read, for encoders that read them; None: no encoder does.
    """

    patch: int | None
    images: ImageRule = NATIVE
    assets: MosaicOptions | None = None
    asset_hash: str | None = None
    frames: FrameRule | None = None


class RowShape(NamedTuple):
    """How much there is in a row, as far as it says so itself; all integers.

    Attributes:
      kind: index into KINDS.
      characters: of its turns.
      images: pictures, mosaics among them.
      packed: 1 if these are mosaics.
      height, width: of its image in pixels, 0 where it does not say.
    """

    kind: int
    characters: int
    images: int
    packed: int
    height: int
    width: int


def row_shape(row: Mapping[str, Any]) -> RowShape:
    """Looks at a row, not at its files; raises RowError for a row that cannot be read."""
    images, packed = len(images_of(row)), row.get("positions_thw") is not None
    if packed or video_of(row) is not None:
        kind = KINDS.index("video")
    else:
        kind = min(images, 2)
    characters = sum(len(turn["value"]) for turn in conversation(row))
    stated = [row.get(name) for name in ("height", "width")]
    if not all(type(side) is int and 0 < side < 1 << 20 for side in stated):
        stated = [0, 0]
    return RowShape(kind, characters, images, int(packed), *stated)


def pack_of(row: Mapping[str, Any], folders: Folders) -> Pack | None:
    """The pack of mosaics that a row names; None for a row without one.

    Raises:
      RowError: `positions_thw` is no path, or the row has a video besides.
      PackError, OSError: the pack is not whole, or its mosaics are not the images of the row.
    """
    positions = row.get("positions_thw")
    if positions is None:
        return None
    if not isinstance(positions, str):
        raise RowError(f"positions_thw = {json.dumps(positions)} must be a path")
    if video_of(row) is not None:
        raise RowError("has both video and positions_thw: leave one of them out")
    images = [join(folders.mosaics, image) for image in images_of(row)]
    return row_pack(join(folders.mosaics, positions), images)


def read_row(
    row: Mapping[str, Any], folders: Folders, reading: Reading
) -> tuple[list[dict[str, Any]], list[Visual]]:
    """The turns and visuals of a row, as `make_example` takes them.

    Args:
      row: has `conversations`, and perhaps `image` or `images`, `positions_thw`, `video`.
      folders: what its paths are relative to.
      reading: how visuals are read.

    Returns:
      The turns, in which a video that is packed on the fly has as many `<image>` as its mosaics, as
      in the rows that `codecvit llava data` writes; and the visuals.

    Raises:
      AssetMismatch: the pack was made with other options than `reading` states.
      RowError: the row is malformed, or has a video without options to pack it with.
      PackError, MediaError, ValueError, OSError: a file is missing or unusable.
    """
    turns = conversation(row)
    pack = pack_of(row, folders)
    if pack is not None:
        return _packed(row, pack, folders, reading)
    video = video_of(row)
    if video is None:
        look = (reading.images, reading.patch, reading.frames)
        return turns, [shown_image(join(folders.images, path), *look) for path in images_of(row)]
    if reading.assets is None and reading.patch is not None:
        raise RowError("has a video, and no options of mosaics were given to pack it with")
    path = join(folders.videos, video)
    visual = shown_video(path, reading.assets, reading.patch, reading.frames)
    turns = with_mosaics(row, [""] * visual.num_groups, "")["conversations"]
    return turns, [visual]


def _packed(
    row: Mapping[str, Any], pack: Pack, folders: Folders, reading: Reading
) -> tuple[list[dict[str, Any]], list[Visual]]:
    """Of a row with mosaics; frames come from the video that they were made of."""
    turns, rule = conversation(row), reading.frames
    if reading.patch is not None and reading.asset_hash is not None:
        pack.require_hash(reading.asset_hash)
    if rule is None:
        return turns, [mosaic_visual(pack, reading.patch)]
    if pack.meta is None:
        raise RowError(
            f"{pack.folder} does not say which video it was made of, and the model reads frames of "
            "it too: give rows with `video`"
        )
    video = join(folders.videos, pack.meta["video"])
    if reading.patch is not None:
        return turns, [with_frames(mosaic_visual(pack, reading.patch), video, rule)]
    places = "\n".join([IMAGE_TOKEN] * len(pack.images))
    if sum(turn["value"].count(places) for turn in turns) != 1:
        raise RowError(f"has no {len(pack.images)} {IMAGE_TOKEN} in lines of their own, once")
    turns = [{**turn, "value": turn["value"].replace(places, VIDEO_TOKEN)} for turn in turns]
    return turns, [frames_visual(rule.video(video))]
