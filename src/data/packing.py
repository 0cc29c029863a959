"""One file -> its records: a pure function of the file and the options.

A video is decoded once for all modes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ..codec.clip import Clip, check_geometry, sample_clip
from ..codec.config import SelectionConfig
from ..codec.descriptor import descriptor, descriptor_image
from ..codec.errors import MediaError
from ..codec.image import image_sequence, read_image
from ..codec.selection import check_selection, select
from ..sequence import NUM_SLOTS
from .record import RECORD_VERSION, Record, Storage, encode_record
from .sources import Item, local_file


@dataclasses.dataclass(frozen=True)
class PackOptions:
    """What decides the bytes of a record, besides its file.

    Attributes:
      modes: selections to make of every video; an image always gives mode `image`.
      draws: records per video in the modes that can draw frames at random.
      num_frames: frames sampled of a video.
      budget: most patches of a video's record.
      size: side of the square view in pixels.
      patch: side of a patch in pixels.
      selection: what the codec mode values.
      storage: how patches are kept.
      seed: of the drawn frames; None takes fixed frames, if there is one draw.
    """

    modes: tuple[str, ...] = ("codec",)
    draws: int = 1
    num_frames: int = NUM_SLOTS
    budget: int = 2048
    size: int = 224
    patch: int = 14
    selection: SelectionConfig = dataclasses.field(default_factory=SelectionConfig)
    storage: Storage = dataclasses.field(default_factory=Storage)
    seed: int | None = None

    def __post_init__(self) -> None:
        check_geometry(self.size, self.patch)
        for mode in self.modes:
            check_selection(mode, self.budget, self.size // self.patch)
        if not self.modes or len(set(self.modes)) < len(self.modes):
            raise ValueError(f"mode = {','.join(self.modes)!r} must name each mode once")
        if not 1 <= self.num_frames <= NUM_SLOTS:
            raise ValueError(f"num_frames = {self.num_frames} must lie in 1..{NUM_SLOTS}")
        if self.draws < 1:
            raise ValueError(f"draws = {self.draws} must be at least 1")

    def draws_of(self, mode: str) -> int:
        """Records per file in a mode: the codec selection and an image have nothing to draw."""
        return self.draws if mode in ("frames", "collage") else 1

    def budget_of(self, mode: str) -> int:
        return (self.size // self.patch) ** 2 if mode == "image" else self.budget

    def describe(self, mode: str) -> dict[str, Any]:
        """The options that bear on one mode, as the manifest states them."""
        fields = {
            "mode": mode,
            "size": self.size,
            "patch": self.patch,
            "budget": self.budget_of(mode),
            "record_version": RECORD_VERSION,
            "storage": self.storage.kind,
        }
        if self.storage.kind == "jpeg":
            fields["quality"] = self.storage.quality
        if mode != "image":
            fields["num_frames"] = self.num_frames
        if mode == "codec":
            fields["selection"] = dataclasses.asdict(self.selection)
        if mode in ("frames", "collage"):
            fields["draws"] = self.draws
            fields["seed"] = self.seed
        return fields


@dataclasses.dataclass(frozen=True)
class Packed:
    """One encoded record with its line of the index."""

    data: bytes
    entry: dict[str, Any]


def pack_item(options: PackOptions, item: Item) -> dict[str, list[Packed]]:
    """All records of one file, by mode.

    Args:
      options: what to make.
      item: the file.

    Returns:
      Per mode `draws_of(mode)` records.

    Raises:
      MediaError: the file is missing, damaged beyond use, or without pictures.
    """
    with local_file(item) as path:
        try:
            if item.kind == "image":
                return {"image": [_pack_image(options, item, path)]}
            clip = sample_clip(
                path, options.num_frames, options.size, options.patch, item.start, item.end
            )
        except MediaError as error:
            raise MediaError(item.source, error.reason) from error
    described = descriptor(clip)
    return {
        mode: [
            _pack_clip(options, item, clip, described, mode, draw)
            for draw in range(options.draws_of(mode))
        ]
        for mode in options.modes
    }


def draw_seed(seed: int, key: str, draw: int) -> int:
    """Seed of one draw of one file; it depends on nothing else, so any order of work agrees."""
    digest = hashlib.sha256(f"{seed}/{draw}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _pack_clip(
    options: PackOptions, item: Item, clip: Clip, described: np.ndarray, mode: str, draw: int
) -> Packed:
    draws = options.draws_of(mode)
    seed = None if options.seed is None else draw_seed(options.seed, item.key, draw)
    record = Record(
        key=item.key if draws == 1 else f"{item.key}#{draw}",
        mode=mode,
        size=options.size,
        budget=options.budget,
        sequence=select(clip, mode, options.budget, seed, options.selection),
        descriptor=described,
        pts=clip.seconds_M.astype(np.float32),
        labels=item.labels,
        source=item.source,
    )
    return _packed(record, options.storage)


def _pack_image(options: PackOptions, item: Item, path: Path) -> Packed:
    rgb_SS3 = read_image(path, options.size)
    record = Record(
        key=item.key,
        mode="image",
        size=options.size,
        budget=options.budget_of("image"),
        sequence=image_sequence(rgb_SS3, options.patch),
        descriptor=descriptor_image(rgb_SS3),
        pts=np.zeros(1, np.float32),
        labels=item.labels,
        source=item.source,
    )
    return _packed(record, options.storage)


def _packed(record: Record, storage: Storage) -> Packed:
    entry = {"key": record.key, "length": len(record.sequence), "labels": record.labels}
    return Packed(encode_record(record, storage), entry)
