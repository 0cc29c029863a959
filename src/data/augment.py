"""What the loader's workers change at random: crops (pictures.py), colours (colours.py), flips,
and which patches are left out.

Every draw comes from the generator of one example, so that it depends on the seed and on the
example's place in the stream alone.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..sequence import PatchSequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is drawn anew each time an example comes up.

    Attributes:
      crop_area: range of a crop's share of the picture; (1, 1) with crop_aspect (1, 1) takes the
        centre. Only for pictures, as are all of the colours: records of patches are cut already.
      crop_aspect: range of a crop's width : height.
      flip: probability of a mirrored example, 0..1.
      jitter: probability that the colours of a picture are changed, 0..1, by...
      brightness, contrast, saturation: ...factors drawn from 1 - value .. 1 + value, 0..1, and...
      hue: ...a turn of at most this share of the colour circle, 0..0.5.
      grey: probability that a picture is shown in grey, 0..1.
    """

    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_aspect: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0

    def __post_init__(self) -> None:
        for name in ("crop_area", "crop_aspect"):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1]:
                raise ValueError(f"augment.{name} = {value} must be (low, high), 0 < low <= high")
        if self.crop_area[1] > 1:
            raise ValueError(f"augment.crop_area = {self.crop_area} must not exceed 1")
        for name in ("flip", "jitter", "brightness", "contrast", "saturation", "hue", "grey"):
            value, most = getattr(self, name), 0.5 if name == "hue" else 1
            if not 0 <= value <= most:
                raise ValueError(f"augment.{name} = {value} must lie in 0..{most}")
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        if any(strengths) != bool(self.jitter):
            raise ValueError(
                f"augment.jitter = {self.jitter} is the probability of a change by brightness, "
                f"contrast, saturation or hue = {strengths}: give both, or neither"
            )

    @property
    def crops(self) -> bool:
        return tuple(self.crop_area) != (1, 1) or tuple(self.crop_aspect) != (1, 1)

    @property
    def for_pictures(self) -> bool:
        """Whether something is drawn that records of patches cannot give."""
        return self.crops or self.jitter > 0 or self.grey > 0


def flip_sequence(sequence: PatchSequence, columns: int) -> PatchSequence:
    """The sequence of the mirrored picture or video: each patch mirrored, w -> columns - 1 - w.

    Args:
      sequence: any mode; all its w lie below `columns`.
      columns: patches in a row of the view.
    """
    t, h, w = sequence.positions.T
    w = columns - 1 - w
    order = np.lexsort((w, h, t))
    positions = np.stack([t, h, w], axis=1)[order]
    return PatchSequence(np.ascontiguousarray(sequence.patches[order, :, ::-1]), positions)


def kept_patches(length: int, mask_ratio: float) -> int:
    """Patches that are left of `length`: the nearest number, at least one."""
    return max(1, round(length * (1 - mask_ratio)))
