"""Frames of a video beside the patches that a model read of them; for reports.

Shape suffixes: M sampled frames, K frames shown, R and C patch rows and columns, H and W pixels, N
patches read, 3 RGB or (t, h, w).
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ...codec.clip import Clip
from ...codec.llava.choice import choose_patches, sample_for_mosaics
from ...codec.llava.options import MosaicOptions
from ...files import exists, join
from ...sequence import slot_times
from ..data.assets import mosaic_visual, open_pack
from ..data.frame_visuals import FrameRule
from ..data.visuals import Visual
from ..encoders.frames import Frames
from ..mcq.questions import Question
from ..mcq.sources import EXPECTED, Sources, VisualError, options_of

_WIDTH = 224
_QUALITY = 72


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """What a model read of a video.

    Attributes:
      frames_KHW3: uint8, some of the sampled frames, evenly spaced; black where nothing is known.
      read_KRC: bool, the patches of them that were read.
      seconds_K: their times; None where they are not known.
      whole: the frames are those of the video; else only the patches that were read.
      patches: number of patches read of all frames.
      samples: number of sampled frames.
    """

    frames_KHW3: np.ndarray
    read_KRC: np.ndarray
    seconds_K: np.ndarray | None
    whole: bool
    patches: int
    samples: int

    def to_json(self) -> dict[str, Any]:
        """For the page: one JPEG of all frames side by side, one text of 0 and 1 per frame."""
        frames, height, width, _ = self.frames_KHW3.shape
        size = (_WIDTH, max(1, round(height * _WIDTH / width)))
        strip = np.concatenate(
            [
                np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
                for frame in self.frames_KHW3
            ],
            axis=1,
        )
        file = io.BytesIO()
        Image.fromarray(strip).save(file, "JPEG", quality=_QUALITY)
        return {
            "strip": "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(),
            "frames": frames,
            "width": size[0],
            "height": size[1],
            "rows": self.read_KRC.shape[1],
            "columns": self.read_KRC.shape[2],
            "read": ["".join(map(str, frame.ravel().astype(int))) for frame in self.read_KRC],
            "seconds": None if self.seconds_K is None else np.round(self.seconds_K, 2).tolist(),
            "whole": self.whole,
            "patches": self.patches,
            "samples": self.samples,
        }


def picture_of(run: Mapping[str, Any], question: Question, source: str, shown: int) -> Picture:
    """What a run showed its model for a question.

    Args:
      run: as run.json states it.
      question: which one.
      source: of its visual, see `mcq.sources.Plan`.
      shown: most frames to show.

    Returns:
      The picture; if the video is gone, of the patches in its assets alone.

    Raises:
      VisualError: neither video nor assets can be used.
    """
    visuals, root = run["visuals"], run["benchmark"]["path"]
    try:
        if source == "asset":
            return _of_asset(visuals["assets"], root, question, shown)
        if source == "video":
            rule = FrameRule(**visuals["shared_frames"])
            return picture_of_frames(rule.video(join(root, question.video), question.span), shown)
        with_options = options_of(visuals["options"])
        selection = choose_patches(join(root, question.video), with_options, question.span)
        return _of_clip(selection.clip, selection.thw_L3, shown)
    except EXPECTED as error:
        raise VisualError(f"{type(error).__name__}: {error}") from error


def _of_asset(assets: str, root: str, question: Question, shown: int) -> Picture:
    folder = Sources(root, assets, MosaicOptions()).asset(question)
    if folder is None:
        raise VisualError("its assets are gone")
    visual, meta = mosaic_visual(folder), open_pack(folder).meta
    video = join(root, question.video)
    if meta is None or not exists(video):
        return _of_patches(visual, None if meta is None else np.array(meta["seconds"]), shown)
    clip = sample_for_mosaics(video, options_of(meta["config"]), question.span)
    if clip.frame_ids_M.tolist() != meta["frame_ids"]:
        raise VisualError(f"{question.video} is not the video that its assets were made of")
    return picture_of_clip(clip, visual, shown)


def picture_of_clip(clip: Clip, visual: Visual, shown: int) -> Picture:
    """What a model read of a video.

    Args:
      clip: the sampled frames that the visual was made of.
      visual: what the model was given.
      shown: most frames to show.
    """
    thw_N3 = visual.positions.copy()
    thw_N3[:, 0] = np.searchsorted(slot_times(len(clip)), thw_N3[:, 0])
    return _of_clip(clip, thw_N3, shown)


def picture_of_frames(frames: Frames, shown: int) -> Picture:
    """Frames that encoders saw whole, each as one cell."""
    shown_K = _spread(len(frames), shown)
    read_KRC = np.ones((len(shown_K), 1, 1), bool)
    seconds_K = None if frames.seconds is None else frames.seconds[shown_K]
    return Picture(frames.pixels[shown_K], read_KRC, seconds_K, True, len(frames), len(frames))


def picture_of_patches(visual: Visual, shown: int = 1) -> Picture:
    """What a model read, where there is nothing but that; images are read whole."""
    return _of_patches(visual, None, shown)


def _of_clip(clip: Clip, thw_N3: np.ndarray, shown: int) -> Picture:
    rows, columns = clip.placement.patches(clip.patch, whole=False)  # without black bars
    shown_K = _spread(len(clip), shown)
    h, w = np.mgrid[rows, columns]
    frames = []
    for sample in shown_K:
        cells = clip.patches(np.full(h.size, sample), h.ravel(), w.ravel())
        frames.append(_tiled(cells, *h.shape))
    read_MRC = _read(thw_N3, len(clip), clip.rows, clip.columns)
    return Picture(
        np.stack(frames),
        read_MRC[shown_K][:, rows, columns],
        clip.seconds_M[shown_K],
        True,
        int(read_MRC.sum()),
        len(clip),
    )


def _of_patches(visual: Visual, seconds_M: np.ndarray | None, shown: int) -> Picture:
    slots, sample_N = np.unique(visual.positions[:, 0], return_inverse=True)
    if seconds_M is not None:
        slots = slot_times(len(seconds_M))
        sample_N = np.searchsorted(slots, visual.positions[:, 0])
    rows, columns = visual.grid
    cells = np.zeros((len(slots), rows, columns, *visual.patches.shape[1:]), np.uint8)
    h, w = visual.positions[:, 1:].T
    cells[sample_N, h, w] = visual.patches
    thw_N3 = np.stack([sample_N, h, w], axis=1)
    read_MRC, shown_K = _read(thw_N3, len(slots), rows, columns), _spread(len(slots), shown)
    frames = [_tiled(cells[k].reshape(-1, *cells.shape[3:]), rows, columns) for k in shown_K]
    return Picture(
        np.stack(frames),
        read_MRC[shown_K],
        None if seconds_M is None else seconds_M[shown_K],
        False,
        int(read_MRC.sum()),
        len(slots),
    )


def _spread(samples: int, shown: int) -> np.ndarray:
    """Up to `shown` of the samples, the first and the last among them."""
    return np.linspace(0, samples - 1, min(shown, samples)).round().astype(int)


def _read(thw_N3: np.ndarray, samples: int, rows: int, columns: int) -> np.ndarray:
    read = np.zeros((samples, rows, columns), bool)
    read[tuple(thw_N3.T)] = True
    return read


def _tiled(cells: np.ndarray, rows: int, columns: int) -> np.ndarray:
    side = cells.shape[1]
    return (
        cells.reshape(rows, columns, side, side, 3)
        .swapaxes(1, 2)
        .reshape(rows * side, columns * side, 3)
    )
