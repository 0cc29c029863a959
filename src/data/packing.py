"""One file -> its records: a pure function of the file and the options.

A video is decoded once for all record sets that see the same of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..codec.clip import Clip, sample_clip
from ..codec.config import SelectionConfig
from ..codec.descriptor import descriptor, descriptor_image
from ..codec.errors import MediaError
from ..codec.image import centre_crop, image_sequence, open_image, read_image
from ..codec.pack import check_options
from ..codec.selection import choose_groups, select
from ..codec.view import View
from ..sequence import NUM_SLOTS, PatchSequence
from .pictures import stored_picture
from .record import PICTURE, RECORD_VERSION, Record, Storage, encode_record
from .sources import Item, local_file


@dataclasses.dataclass(frozen=True)
class PackOptions:
    """What decides the bytes of a record, besides its file.

    Attributes:
      modes: selections to make of every video; an image always gives mode `image`.
      draws: records per video in the modes that can draw frames at random.
      num_frames: frames sampled of a video.
      sampling: evenly by "index" or by "time".
      budget: most patches of a video's record.
      geometry: of a video's view, see `codecvit.codec.view`; an image is always cropped.
      size: side of the view in pixels.
      patch: side of a patch in pixels.
      selection: what the codec mode values.
      storage: how patches are kept.
      picture_side: images are kept as pictures; one whose short side has more pixels is scaled down
        to it.
      seed: of the drawn frames; None takes fixed frames, if there is one draw.
      phase: of a video's samples and, in modes that choose frames, of the frames: another view of
        the same clip, see `Sampling`.
      cut_at: where the geometry "crop" cuts: likewise, see `View`.
    """

    modes: tuple[str, ...] = ("codec",)
    draws: int = 1
    num_frames: int = NUM_SLOTS
    sampling: str = "index"
    budget: int = 2048
    geometry: str = "crop"
    size: int = 224
    patch: int = 14
    selection: SelectionConfig = dataclasses.field(default_factory=SelectionConfig)
    storage: Storage = dataclasses.field(default_factory=Storage)
    picture_side: int = 512
    seed: int | None = None
    phase: float | None = None
    cut_at: float = 0.5

    def __post_init__(self) -> None:
        for mode in self.modes:
            check_options(mode, self.num_frames, self.budget, self.view, self.selection)
        if not self.modes or len(set(self.modes)) < len(self.modes):
            raise ValueError(f"mode = {','.join(self.modes)!r} must name each mode once")
        if self.selection.policy == "groups" and self.modes != ("codec",):
            raise ValueError(
                f"policy = groups makes records of mode codec alone, not {','.join(self.modes)!r}"
            )
        if self.picture_side < self.size:
            raise ValueError(
                f"picture_side = {self.picture_side} is below size = {self.size}: pictures would "
                "be scaled down and up again"
            )
        if self.draws < 1:
            raise ValueError(f"draws = {self.draws} must be at least 1")

    @property
    def view(self) -> View:
        return View(self.geometry, self.size, self.patch, self.cut_at)

    @property
    def decoding(self) -> dict[str, Any]:
        """What `sample_clip` is called with: videos that agree in it are decoded once."""
        return {
            "num_frames": self.num_frames,
            "size": self.size,
            "patch": self.patch,
            "geometry": self.geometry,
            "sampling": self.sampling,
            "config": self.selection,
            "phase": self.phase,
            "cut_at": self.cut_at,
        }

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
            "storage": PICTURE if mode == "image" else self.storage.kind,
        }
        if mode == "image":
            fields["picture_side"] = self.picture_side
        elif self.storage.kind == "jpeg":
            fields["quality"] = self.storage.quality
        if mode != "image":
            fields["num_frames"] = self.num_frames
            fields["sampling"] = self.sampling
            fields["geometry"] = self.geometry
            # Left out by default, so that sets that were packed before there were views are known.
            if self.phase is not None:
                fields["phase"] = self.phase
            if self.cut_at != 0.5:
                fields["cut_at"] = self.cut_at
        if mode == "codec":
            fields["selection"] = dataclasses.asdict(self.selection)
        if mode in ("frames", "collage"):
            fields["draws"] = self.draws
        if mode in ("frames", "collage") or (mode == "codec" and self.selection.policy == "random"):
            fields["seed"] = self.seed
        return fields


@dataclasses.dataclass(frozen=True)
class Packed:
    """One encoded record with its line of the index."""

    data: bytes
    entry: dict[str, Any]


def pack_item(wanted: Mapping[str, PackOptions], item: Item) -> dict[str, list[Packed]]:
    """All records of one file, for each of several record sets.

    Args:
      wanted: what to make, by the name of the set; of a video one mode each.
      item: the file.

    Returns:
      By name of the set `draws_of(mode)` records, or one per group with the policy "groups".

    Raises:
      MediaError: the file is missing, damaged beyond use, or without pictures.
    """
    packed = {}
    with local_file(item) as path:
        try:
            if item.kind == "image":
                return {name: [_pack_image(wanted[name], item, path)] for name in wanted}
            for name, options in wanted.items():
                if name in packed:
                    continue
                alike = {n: o for n, o in wanted.items() if o.decoding == options.decoding}
                clip = sample_clip(path, start=item.start, end=item.end, **options.decoding)
                packed |= _clip_records(alike, item, clip)
        except MediaError as error:
            raise MediaError(item.source, error.reason) from error
    return packed


def item_sequence(options: PackOptions, item: Item) -> PatchSequence:
    """The one sequence of a file, for a use that keeps no record.

    Args:
      options: one mode; not the policy "groups", which gives several.
      item: the file.

    Raises:
      MediaError: as `pack_item`.
    """
    (mode,) = options.modes
    with local_file(item) as path:
        try:
            if item.kind == "image":
                return image_sequence(read_image(path, options.size), options.patch)
            clip = sample_clip(path, start=item.start, end=item.end, **options.decoding)
            return select(clip, mode, options.budget, options.seed, options.phase)[0]
        except MediaError as error:
            raise MediaError(item.source, error.reason) from error


def draw_seed(seed: int, key: str, draw: int) -> int:
    """Seed of one draw of one file; it depends on nothing else, so any order of work agrees."""
    digest = hashlib.sha256(f"{seed}/{draw}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _clip_records(
    wanted: Mapping[str, PackOptions], item: Item, clip: Clip
) -> dict[str, list[Packed]]:
    """Records of one decoded clip for all sets that are made of it."""
    described = None
    packed = {}
    for name, options in wanted.items():
        if options.selection.policy == "groups":
            packed[name] = _group_records(options, item, clip)
            continue
        if described is None:
            described = descriptor(clip)
        (mode,) = options.modes
        packed[name] = [
            _pack_clip(options, item, clip, described, mode, draw)
            for draw in range(options.draws_of(mode))
        ]
    return packed


def _pack_clip(
    options: PackOptions, item: Item, clip: Clip, described: np.ndarray, mode: str, draw: int
) -> Packed:
    seed = None if options.seed is None else draw_seed(options.seed, item.key, draw)
    (sequence,) = select(clip, mode, options.budget, seed, options.phase)
    key = item.key if options.draws_of(mode) == 1 else f"{item.key}#{draw}"
    return _packed_clip(options, item, clip, described, mode, sequence, key)


def _group_records(options: PackOptions, item: Item, clip: Clip) -> list[Packed]:
    """One record per group, each described by its own samples."""
    return [
        _packed_clip(
            options,
            item,
            found.clip,
            descriptor(found.clip),
            "codec",
            found.sequence(),
            f"{item.key}#{place}",
            (place, found.first_sample),
        )
        for place, found in enumerate(choose_groups(clip, options.budget))
    ]


def _packed_clip(
    options: PackOptions,
    item: Item,
    clip: Clip,
    described: np.ndarray,
    mode: str,
    sequence: PatchSequence,
    key: str,
    group: tuple[int, int] | None = None,
) -> Packed:
    record = Record(
        key=key,
        mode=mode,
        view=clip.yuv_M3HW.shape[2:],
        budget=options.budget,
        sequence=sequence,
        descriptor=described,
        pts=clip.seconds_M.astype(np.float32),
        # What whole frames are compared with decides on nothing.
        gaps=(clip.gaps_T if mode == "codec" else np.diff(clip.seconds_M)).astype(np.float32),
        group=group,
        labels=item.labels,
        source=item.source,
        texts=item.texts,
    )
    return _packed(record, options.storage)


def _pack_image(options: PackOptions, item: Item, path: Path) -> Packed:
    image = open_image(path, path)
    return pack_picture(options, item, path.read_bytes(), image)


def pack_picture(options: PackOptions, item: Item, data: bytes, image: Image.Image) -> Packed:
    """The record of an image.

    Args:
      options: its size, patch and picture_side count.
      item: key, labels, texts and source of the record.
      data: the encoded image...
      image: ...and what `open_image` made of it.
    """
    rgb_SS3 = centre_crop(image, options.size)
    record = Record(
        key=item.key,
        mode="image",
        view=(options.size, options.size),
        budget=options.budget_of("image"),
        sequence=image_sequence(rgb_SS3, options.patch),
        descriptor=descriptor_image(rgb_SS3),
        pts=np.zeros(1, np.float32),
        gaps=np.zeros(0, np.float32),
        labels=item.labels,
        source=item.source,
        picture=stored_picture(data, image, options.picture_side),
        texts=item.texts,
    )
    return _packed(record, options.storage)


def _packed(record: Record, storage: Storage) -> Packed:
    entry = {"key": record.key, "length": len(record.sequence), "labels": record.labels}
    if record.texts:
        entry["texts"] = sorted(record.texts)
    if len(record.gaps):
        entry["gap"] = round(float(np.median(record.gaps)), 3)
    return Packed(encode_record(record, storage), entry)
