"""What a conversation is about: a video or an image, read as training and evaluation read it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ...codec.llava.choice import sample_for_mosaics
from ...codec.llava.options import MosaicOptions
from ...codec.llava.packs import EXPECTED
from ...codec.llava.recipe import Folders
from ...codec.llava.rows import IMAGE_TOKEN, VIDEO_TOKEN
from ...files import exists, is_url
from ..data.row_visuals import Reading, read_row
from ..mcq.look import Look
from ..mcq.sources import Sources, VisualError
from ..open_ended.questions import OpenQuestion
from ..report.pictures import Picture, picture_of_clip, picture_of_frames, picture_of_patches
from .session import Conversation

if TYPE_CHECKING:
    from ..data.visuals import Visual
    from ..mcq.answer import ModelAnswerer

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of what is read as an image; anything else is a video."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sight:
    """What the model is shown.

    Attributes:
      path: where it lies.
      visual: as the model gets it.
      source: "image"; of a video see `mcq.sources.Plan`.
    """

    path: str
    visual: Visual
    source: str

    @property
    def opening(self) -> str:
        """What stands before the first question."""
        return f"{IMAGE_TOKEN if self.source == 'image' else VIDEO_TOKEN}\n"

    def describe(self) -> str:
        """How much of what is read, in words."""
        visual, read = self.visual, []
        if len(visual):
            of = len({int(t) for t in visual.positions[:, 0]})
            told = f"{len(visual):,} patches of {visual.patch} x {visual.patch} pixels read"
            read.append(told if self.source == "image" else f"{told} of {of} frames")
        if visual.frames is not None:
            count, side = visual.frames.pixels.shape[:2]
            read.append(f"{count} whole of {side} x {side} pixels")
        how = {"asset": "from its asset", "packed": "packed now", "frames": "whole frames"}
        kind = "image" if self.source == "image" else "video"
        told = f"{kind} ({how[self.source]})" if self.source in how else kind
        return f"{told}, {' and '.join(read)}"


class Reader:
    """Reads videos and images for a model.

    Args:
      answerer: the model.
      options: how mosaics are made of videos; of another patch than the model's, cells are resized.
      assets: what `codecvit llava assets` was given as --out, or None.
      root: what the keys of assets are relative to; None: the folder of the video.
      on_miss: what happens to a video without assets, see `Sources`.

    Raises:
      ValueError: an option is out of range, or the assets are not there.
    """

    def __init__(
        self,
        answerer: ModelAnswerer,
        options: MosaicOptions,
        assets: str | None = None,
        root: str | None = None,
        on_miss: str = "pack",
    ) -> None:
        self._answerer, self._options = answerer, options
        self._assets, self._root, self._on_miss = assets, root, on_miss
        self._sources("")

    def read(self, path: str | os.PathLike[str]) -> Sight:
        """Reads a file, a URL, or a folder of numbered images.

        Raises:
          ValueError: it is not there, cannot be used, or would be read with other options than the
            model was trained with.
        """
        name = os.fspath(path)
        if not exists(name):
            raise ValueError(f"{name} does not exist")
        if name.lower().endswith(IMAGES):
            return self._image(name)
        if not is_url(name):
            name = str(Path(name).absolute())
        question = _about(name)
        sources = self._sources(name)
        sources.plan([question], self._answerer.expected_hash)
        visual, source = sources.load(question)
        return Sight(name, visual, source)

    def converse(self, sight: Sight) -> Conversation:
        """A conversation about it, nothing said yet."""
        return Conversation(self._answerer, sight)

    def picture(self, sight: Sight, shown: int) -> Picture:
        """The frames of an image or of a video without assets, and the patches that were read.

        Args:
          sight: as `read` gave it; its file is still there.
          shown: most frames.

        Raises:
          VisualError: the file cannot be used.
        """
        if not len(sight.visual):
            assert sight.visual.frames is not None, "there are patches or frames"
            return picture_of_frames(sight.visual.frames, shown)
        if sight.source == "image":
            return picture_of_patches(sight.visual)
        options = self._sources(sight.path).packing(sight.source == "frames")
        try:
            return picture_of_clip(sample_for_mosaics(sight.path, options), sight.visual, shown)
        except EXPECTED as error:
            raise VisualError(f"{type(error).__name__}: {error}") from error

    def _image(self, path: str) -> Sight:
        config = self._answerer.config
        reading = Reading(self._answerer.patch, config.image_rule, frames=config.frame_rule)
        row = {"image": path, "conversations": [{"from": "human", "value": f"{IMAGE_TOKEN}\n"}]}
        try:
            _, (visual,) = read_row(row, Folders("", "", ""), reading)
        except EXPECTED as error:
            raise VisualError(f"{type(error).__name__}: {error}") from error
        return Sight(path, visual, "image")

    def _sources(self, path: str) -> Sources:
        root = self._root or (path.rpartition("/")[0] if path else "")
        patch = self._answerer.patch
        look = Look(patch is not None, self._answerer.config.frame_rule)
        return Sources(root, self._assets, self._options, self._on_miss, patch, 1, look)


def _about(video: str) -> OpenQuestion:
    return OpenQuestion(0, "chat", "chat", "", "", (), video)
