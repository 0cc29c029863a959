"""Pictures of a selection: frames with the chosen patches lit, saliency as colours.

Shape suffixes: M sampled frames, R and C patch rows and columns, H and W the view in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .clip import Clip
from .selection import Selection

PAPER = (18, 18, 18)
INK = (235, 235, 235)
GAP = 6  # pixels between tiles
STRIP = 18  # pixels for a line of text
_DIM = 0.28
_TEXT = 12

# From dark violet over red to pale yellow: dark to light, so that it survives printing in grey.
_COLOURS = np.array(
    [(8, 4, 24), (75, 16, 92), (160, 40, 80), (225, 90, 40), (250, 170, 40), (252, 250, 180)], float
)


@dataclasses.dataclass(frozen=True, eq=False)
class Picked:
    """What was chosen of a clip, over all of its groups.

    Attributes:
      clip: the whole clip.
      lit_MRC: bool, the chosen patches.
      group_M: number of the group that each frame belongs to.
      groups: number of groups.
    """

    clip: Clip
    lit_MRC: np.ndarray
    group_M: np.ndarray
    groups: int

    @classmethod
    def of(cls, clip: Clip, selections: Sequence[Selection]) -> Picked:
        """From the selections of `choose_groups`."""
        lit_MRC = np.zeros((len(clip), clip.rows, clip.columns), bool)
        group_M = np.zeros(len(clip), np.int64)
        for number, found in enumerate(selections):
            t, h, w = found.thw_L3.T
            lit_MRC[t + found.first_sample, h, w] = True
            group_M[found.first_sample :] = number
        return cls(clip, lit_MRC, group_M, len(selections))

    def label(self, frame: int) -> str:
        """Time, picture type and share of the budget of a frame: "1.20 s P 3.1 %"."""
        kind = self.clip.pict_types_M[frame] if self.clip.pict_types_M else ""
        mine = self.group_M == self.group_M[frame]
        share = self.lit_MRC[frame].sum() / max(int(self.lit_MRC[mine].sum()), 1)
        parts = [f"{self.clip.seconds_M[frame]:.2f} s", kind, f"{share:.1%}"]
        if self.groups > 1:
            parts.append(f"group {self.group_M[frame]}")
        return "  ".join(part for part in parts if part)

    def lit(self, frame: int) -> np.ndarray:
        """The frame, what was not chosen grey and dark: uint8 [H, W, 3]."""
        rgb = self.clip.rgb(np.array([frame]))[0]
        grey = (rgb.mean(axis=2, keepdims=True) * _DIM).astype(np.uint8)
        return np.where(_enlarged(self.lit_MRC[frame], self.clip.patch)[..., None], rgb, grey)

    def heat(self, frame: int) -> np.ndarray:
        """The scores of the frame's patches as colours: uint8 [H, W, 3]; no picture is black."""
        scores = _enlarged(self.clip.scores_MRC[frame], self.clip.patch)
        return np.where((scores < 0)[..., None], np.uint8(0), colours(np.clip(scores, 0, 1)))

    def heated(self, frame: int) -> np.ndarray:
        """The frame under its scores: uint8 [H, W, 3]."""
        rgb = self.clip.rgb(np.array([frame]))[0].astype(np.float32)
        return np.rint(0.45 * rgb + 0.55 * self.heat(frame)).astype(np.uint8)


def colours(values: np.ndarray) -> np.ndarray:
    """Numbers in 0..1 [...] as colours, uint8 [..., 3], the lighter the larger."""
    place = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(values, place, _COLOURS[:, i]) for i in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def tiles(
    pictures: Sequence[np.ndarray], labels: Sequence[str], columns: int, zoom: int, head: str = ""
) -> Image.Image:
    """Pictures of one size side by side, each over its label.

    Args:
      pictures: uint8 [H, W, 3] each.
      labels: one line each.
      columns: pictures in a row.
      zoom: each pixel becomes zoom x zoom.
      head: a line above; none if empty.

    Returns:
      The sheet.
    """
    height, width = (side * zoom for side in pictures[0].shape[:2])
    rows = -(-len(pictures) // columns)
    top_edge = (STRIP + GAP if head else 0) + GAP
    size = columns * (width + GAP) + GAP, top_edge + rows * (height + STRIP + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    if head:
        draw.text((GAP, GAP), head, fill=INK, font=font)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left = GAP + i % columns * (width + GAP)
        top = top_edge + i // columns * (height + STRIP + GAP)
        image = Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(image, (left, top))
        draw.text((left, top + height + 2), label, fill=INK, font=font)
    return sheet


def _enlarged(values_RC: np.ndarray, patch: int) -> np.ndarray:
    return values_RC.repeat(patch, axis=0).repeat(patch, axis=1)
