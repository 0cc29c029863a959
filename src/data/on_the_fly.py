"""Videos packed in the loader's workers instead of beforehand.

For trying another budget or size without packing again. Each sample decodes a video: it costs tens
of times what reading a record does (docs/benchmarks.md, loader).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from ..codec.clip import sample_clip
from ..codec.config import SelectionConfig
from ..codec.errors import MediaError
from ..codec.selection import select
from ..files import PathOrUrl
from .packing import draw_seed
from .record import Record, RecordError
from .records import RecordSet
from .sources import Item, list_items, local_file

_SHOWN = 3


class OnTheFly(RecordSet):
    """A record set whose patches are taken from the videos anew; keys and labels stay its own.

    Everything but size and budget is as its manifest says: with its own size and budget a record
    holds the same patches, before they were stored.

    Args:
      path: the record set, of mode codec, frames or collage, one record per video.
      videos: what was packed: a folder, a table or a file, as `codecvit pack` takes it.
      budget: most patches of a sequence.
      size: side of the view in pixels; 0 takes that of the records.

    Raises:
      ValueError: the set is of another kind, the size is no multiple of its patch, or a record's
        video is not among the videos.
    """

    def __init__(self, path: PathOrUrl, videos: PathOrUrl, budget: int, size: int = 0) -> None:
        super().__init__(path)
        packed = self.manifest
        if packed["mode"] == "image" or packed.get("draws", 1) > 1 or _grouped(packed):
            raise ValueError(
                f"{self.path} holds records of mode {packed['mode']!r} that are not one per video; "
                "pack them anew instead of reading the videos"
            )
        self._size = size or packed["size"]
        if self._size % packed["patch"]:
            raise ValueError(
                f"size = {self._size} must be a multiple of the patch side {packed['patch']}"
            )
        items = {item.key: item for item in list_items([str(videos)])}
        missing = [key for key in self.keys if key not in items]
        if missing:
            raise ValueError(
                f"{videos} lacks {len(missing)} of the {len(self)} videos of {self.path}: "
                f"{', '.join(missing[:_SHOWN])}{' ...' if len(missing) > _SHOWN else ''}"
            )
        self._items: list[Item] = [items[key] for key in self.keys]
        self._budget = budget
        self.manifest = {
            **packed,
            "size": self._size,
            "budget": budget,
            "tokens": {**packed["tokens"], "max": budget},
        }

    def cache_need(self, window: int) -> int:
        """0: the shards are not read."""
        return 0

    def record(self, index: int, see: Callable[[Image.Image], np.ndarray] | None = None) -> Record:
        """Record `index`, packed now; `see` concerns pictures alone.

        Raises:
          RecordError: the video cannot be decoded.
        """
        item, packed = self._items[index], self.manifest
        selection, seed = packed.get("selection"), packed.get("seed")
        phase = packed.get("phase")
        try:
            with local_file(item) as path:
                clip = sample_clip(
                    path,
                    packed["num_frames"],
                    self._size,
                    packed["patch"],
                    item.start,
                    item.end,
                    geometry=packed["geometry"],
                    sampling=packed["sampling"],
                    config=SelectionConfig(**selection) if selection else SelectionConfig(),
                    phase=phase,
                    cut_at=packed.get("cut_at", 0.5),
                )
                drawn = None if seed is None else draw_seed(seed, item.key, 0)
                (sequence,) = select(clip, packed["mode"], self._budget, drawn, phase)
        except (MediaError, OSError) as error:
            raise RecordError(f"record {index} of {self.path}: {error}") from error
        return Record(
            key=item.key,
            mode=packed["mode"],
            view=clip.yuv_M3HW.shape[2:],
            budget=self._budget,
            sequence=sequence,
            descriptor=np.zeros(0, np.float32),
            pts=clip.seconds_M.astype(np.float32),
            gaps=np.diff(clip.seconds_M).astype(np.float32),
            labels=item.labels,
            source=item.source,
        )


def _grouped(manifest: dict) -> bool:
    return manifest.get("selection", {}).get("policy") == "groups"
