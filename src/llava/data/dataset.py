"""The examples of a mixture, and their batches: a map-style data set for torch's DataLoader.

An example that cannot be made is a `Failure` in its place; the batch goes on without it. Nothing is
put in its stead.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ...codec.llava.options import MosaicOptions
from ...codec.llava.packs import EXPECTED
from ...codec.llava.rows import RowError
from ..model.token_counts import num_visual_tokens
from .assets import AssetMismatch, mosaic_visual
from .collate import collate
from .examples import IGNORED, Example, ExampleError, make_example
from .failures import Failure
from .mixture import Mixture
from .row_visuals import KINDS, Reading, pack_of, read_row
from .sampler import LengthGroupedBatches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..model.config import LlavaConfig

_CHARACTERS_PER_TOKEN = 4
_USUAL_IMAGE = (480, 640)  # height and width where a row states none
_PACKS_TRIED = 100  # before it is plain that the data lie elsewhere


class LlavaDataset(Dataset):
    """Examples of a mixture.

    Args:
      mixture: the rows.
      tokenizer: of the language model.
      config: of the model.
      max_length: most tokens of an example.
      images: at which size images are read.
      assets: the options that all mosaics must have been made with, and that plain videos are
        packed with. None takes the packs of the mixture as they are, provided that all were made
        with the options of the first, and allows no plain videos.

    Raises:
      ValueError: there are videos and no `assets`, or none of the first hundred packs can be read.

    Indexing gives an Example, or a Failure where the row or a file of it is unusable; a pack that
    was made with other options than the rest raises AssetMismatch.
    """

    def __init__(
        self,
        mixture: Mixture,
        tokenizer: PreTrainedTokenizerBase,
        config: LlavaConfig,
        max_length: int,
        *,
        assets: MosaicOptions | None = None,
    ) -> None:
        self.mixture = mixture
        self.tokenizer = tokenizer
        self.config = config
        self.max_length = max_length
        shapes = mixture.shapes
        video_E = shapes.kind == KINDS.index("video")
        patch = config.patch_size
        if patch is None and assets is not None:
            raise ValueError("assets have no effect on a model that reads frames alone: leave them")
        if patch is not None and assets is None and (video_E & (shapes.packed == 0)).any():
            index = int((video_E & (shapes.packed == 0)).argmax())
            raise ValueError(
                f"{mixture[index].source} has a video: give assets, the options to pack it with, "
                "or pack all videos beforehand (codecvit llava data)"
            )
        asset_hash, self._grid, self._samples = None, None, 1
        if patch is not None:
            packed = _first_pack(mixture, np.flatnonzero(shapes.packed))
            asset_hash, self._grid, self._samples = packed
        if assets is not None:
            asset_hash, self._samples = assets.hash, assets.num_frames
            self._grid = self._grid or (assets.size // assets.patch,) * 2
        self.reading = Reading(patch, config.image_rule, assets, asset_hash, config.frame_rule)
        self._known_tokens: dict[tuple[int, int, int, int], int] = {}

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> Example | Failure:
        row, source, folders = self.mixture[index]
        try:
            if isinstance(row, RowError):
                raise row
            turns, visuals = read_row(row, folders, self.reading)
            return make_example(turns, visuals, self.tokenizer, self.config, self.max_length)
        except AssetMismatch:
            raise
        except ExampleError as error:
            return Failure(index, source, error.kind, error.reason)
        except EXPECTED as error:
            return Failure(index, source, type(error).__name__, str(error))

    @functools.cached_property
    def kinds(self) -> np.ndarray:
        """int32, what each example shows: an index into KINDS."""
        return self.mixture.shapes.kind

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """int64, about how many tokens each example has, from its row alone; for grouping."""
        return self.mixture.shapes.characters // _CHARACTERS_PER_TOKEN + 1 + self.visual_tokens

    @functools.cached_property
    def visual_tokens(self) -> np.ndarray:
        """int64, about how many visual tokens each example has, from its row alone."""
        shapes = self.mixture.shapes
        sight = np.stack([shapes.kind, *shapes[2:]], axis=1)
        sights, inverse_E = np.unique(sight, axis=0, return_inverse=True)
        visual = np.array([self._visual_tokens(*s) for s in sights.tolist()])
        return visual[inverse_E.reshape(-1)]

    def length(self, index: int) -> int:
        """About how many tokens an example has."""
        return int(self.lengths[index])

    def _visual_tokens(self, kind: int, images: int, packed: int, height: int, width: int) -> int:
        if KINDS[kind] == "video":
            if self._grid is None:
                return self._tokens(0, 0, self.config.frame_rule.count)
            count = images if packed else self.reading.assets.num_images
            return self._tokens(*self._grid, count, self._samples)
        if images == 0:
            return 0
        grid = (0, 0)
        if self.reading.patch is not None:
            height, width = (height, width) if height else _USUAL_IMAGE
            grid = self.reading.images.grid(height, width, self.reading.patch)
        return images * self._tokens(*grid)

    def _tokens(self, rows: int, columns: int, pictures: int = 1, samples: int = 1) -> int:
        """Visual tokens of as many patches as whole pictures, spread over `samples` times.

        And of frames, where they are read: one picture at one time is an image.
        """
        known = self._known_tokens.get((rows, columns, pictures, samples))
        if known is None:
            place = np.arange(rows * columns * pictures)
            h, w = np.divmod(place % max(rows * columns, 1), max(columns, 1))
            t = place * samples // max(len(place), 1)
            rule = self.config.frame_rule
            frames = 0 if rule is None else (rule.count if max(pictures, samples) > 1 else 1)
            positions = np.stack([t, h, w], axis=1)
            known = num_visual_tokens(self.config, positions, (rows, columns), frames)
            self._known_tokens[rows, columns, pictures, samples] = known
        return known


class Batch(NamedTuple):
    """What a data loader gives.

    Attributes:
      inputs: the arguments of the model's forward, see `collate`.
      failures: the examples that are missing.
      seen: examples, those that failed among them; 0 for a process that has no part in the last
        batch of an epoch.
    """

    inputs: dict[str, torch.Tensor | None]
    failures: list[Failure]
    seen: int


class Collator:
    """Makes a Batch of what a data set gives.

    Where no example is left, the batch is one row of two padding tokens without labels: it weighs
    nothing, and every process still takes every step.

    Args:
      pad_id: see `collate`.
      left: see `collate`.
    """

    def __init__(self, pad_id: int, left: bool = False) -> None:
        self.pad_id = pad_id
        self.left = left

    def __call__(self, items: Sequence[Example | Failure]) -> Batch:
        examples = [item for item in items if isinstance(item, Example)]
        failures = [item for item in items if isinstance(item, Failure)]
        if not examples:
            nothing = np.full(2, IGNORED, np.int64)
            examples = [Example(np.full(2, self.pad_id, np.int64), nothing, [])]
        return Batch(collate(examples, self.pad_id, self.left), failures, len(items))


def make_loader(
    dataset: LlavaDataset,
    batches: LengthGroupedBatches,
    collator: Collator,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """A DataLoader of Batch; iterate it again for the next epoch.

    Args:
      dataset: the examples.
      batches: which of them, in which order; its cursor says where to begin.
      collator: makes the batches.
      workers: processes, freshly started ones: decoders hold threads, which no fork survives.
      pin_memory: for copies to a GPU.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collator,
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context="spawn" if workers else None,
    )


def _first_pack(
    mixture: Mixture, packed: np.ndarray
) -> tuple[str | None, tuple[int, int] | None, int]:
    """(config hash, grid, sampled frames) of the first pack that can be read; (None, None, 1) where
    no row has one."""
    reason: Exception | None = None
    for index in packed[:_PACKS_TRIED].tolist():
        row, _, folders = mixture[index]
        try:
            pack = pack_of(row, folders)
            visual = mosaic_visual(pack)
            return pack.config_hash, visual.grid, len(np.unique(visual.positions[:, 0]))
        except EXPECTED as error:
            reason = reason or error
    if reason is not None:
        raise ValueError(
            f"none of the first {len(packed[:_PACKS_TRIED])} packs can be read; the first: {reason}"
        ) from reason
    return None, None, 1
