"""Options of the codec selection and their presets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

SIGNALS = ("estimate", "bitstream", "difference")
SCALES = ("clip", "sqrt", "frame")
CAMERAS = ("similarity", "median", "none")
POLICIES = ("top_k", "time_bucket", "groups", "random")
FIRST_FRAMES = ("whole", "ranked")
PADDINGS = ("keep", "exclude", "repeat")

DEFAULT_BUCKETS = 8
"""Stretches of time of the policy time_bucket where `policy_arg` is None."""


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises ValueError, which lists the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"{name} = {value!r} must be one of {', '.join(choices)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """What makes a patch worth keeping, and how the budget is shared out.

    Attributes:
      signal: where motion between consecutive samples comes from. "estimate": FFmpeg's own block
        search on the decoded samples, for any codec. "bitstream": the vectors that the file itself
        carries, H.264 and MPEG-4 only. "difference": none, the plain difference of frames.
      scale: where the 95th percentile that maps residual and motion to 0..1 is taken: over the
        "clip" (a still frame stays low), over each "frame" (as the published pipeline does; it
        lifts the noise of still frames), or "sqrt", their geometric mean.
      camera: the motion that is taken off before motion counts: a robust 4-parameter "similarity"
        (shift, zoom, roll), the "median" vector of the frame, or "none".
      w_res: weight of the motion-compensated residual, at least 0.
      w_mv: weight of the motion that the camera does not explain, at least 0; not both weights 0.
      frame_cap: None, or the largest share (0 < share <= 1) of one later frame that may be chosen.
        It bounds a scene cut, whose every patch is new. Where the cap would leave the budget
        unfilled, the best patches beyond it fill it.
      pair_dt: None, or seconds > 0: a sample that lies further than this behind the one before is
        compared with the frame that lies this long before it instead, which is decoded for it.
        Samples seconds apart share little, and everything would count as new.
      policy: "top_k": the best patches of all later frames together; "time_bucket": each of equal
        stretches of time first gets its even share; "groups": the clip is cut into groups of
        consecutive samples, each a sequence of its own with its own budget; "random": drawn evenly
        by `seed`, the control of an experiment.
      policy_arg: a positive integer, or None. For "time_bucket" the number of stretches (None: 8);
        for "groups" the samples of a group, 1 to 64 (None: a group ends when its news fill its
        budget). The other policies take none.
      block: 1, or 2 to choose whole blocks of 2 x 2 patches, for models that merge 2 x 2.
      first_frame: "whole" keeps all of the first frame; "ranked" lets its patches compete, scored
        by their deviation from their own mean, which is what coding them without a reference costs.
      padding: what becomes of patches without picture in the geometry "square": "keep" (the
        published policy "zero": they belong to the first frame, and are chosen after all others),
        "exclude" (only patches wholly inside the picture exist), "repeat" (padding never exists,
        border patches do; mosaics that lack patches repeat some).
    """

    signal: str = "estimate"
    scale: str = "clip"
    camera: str = "similarity"
    w_res: float = 1.0
    w_mv: float = 0.3
    frame_cap: float | None = None
    pair_dt: float | None = None
    policy: str = "top_k"
    policy_arg: int | None = None
    block: int = 1
    first_frame: str = "whole"
    padding: str = "keep"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            require_choice(name, getattr(self, name), choices)
        for name in ("w_res", "w_mv"):
            value = getattr(self, name)
            if not (_is_number(value) and value >= 0):
                raise ValueError(f"{name} = {value!r} must be a finite number of at least 0")
        if self.w_res == 0 and self.w_mv == 0:
            raise ValueError("w_res = 0 and w_mv = 0: at least one of them must be positive")
        if self.signal == "difference" and self.w_res == 0:
            raise ValueError("w_res = 0 with signal = 'difference', which has no motion to rank by")
        cap, gap = self.frame_cap, self.pair_dt
        if cap is not None and not (_is_number(cap) and 0 < cap <= 1):
            raise ValueError(f"frame_cap = {cap!r} must be None or a share with 0 < share <= 1")
        if gap is not None and not (_is_number(gap) and gap > 0):
            raise ValueError(f"pair_dt = {gap!r} must be None or seconds above 0")
        if gap is not None and self.signal == "bitstream":
            raise ValueError(
                f"pair_dt = {gap!r} must be None with signal = 'bitstream': the file's vectors "
                "lead from sample to sample"
            )
        if self.block not in (1, 2):
            raise ValueError(f"block = {self.block!r} must be 1 or 2")
        self._check_policy_arg()

    def _check_policy_arg(self) -> None:
        arg = self.policy_arg
        if arg is None:
            return
        if self.policy not in ("time_bucket", "groups"):
            raise ValueError(f"policy_arg = {arg!r} must be None with policy = {self.policy!r}")
        if not isinstance(arg, int) or isinstance(arg, bool) or arg < 1:
            raise ValueError(f"policy_arg = {arg!r} must be None or an integer of at least 1")
        if self.policy == "groups" and arg > 64:
            raise ValueError(f"policy_arg = {arg!r} must be at most 64, the slots of a group")


_CHOICES = {
    "signal": SIGNALS,
    "scale": SCALES,
    "camera": CAMERAS,
    "policy": POLICIES,
    "first_frame": FIRST_FRAMES,
    "padding": PADDINGS,
}

PRESETS = {
    "default": SelectionConfig(),
    # The normalisation, camera model and weights of the published OneVision-Encoder tools.
    "published": SelectionConfig(scale="frame", camera="median", w_res=1.0, w_mv=1.0),
    # No search for motion: for a first look, and the baseline that the others have to beat.
    "fast": SelectionConfig(signal="difference", camera="none", w_mv=0.0),
}


def selection_config(preset: str = "default", settings: Sequence[str] = ()) -> SelectionConfig:
    """A preset with single fields changed.

    Args:
      preset: a name of PRESETS.
      settings: "field=value" each, for example "scale=sqrt", "w_mv=0.5", "frame_cap=none".

    Returns:
      The checked configuration.

    Raises:
      ValueError: an unknown preset or field, or a value that the field refuses.
    """
    require_choice("preset", preset, tuple(PRESETS))
    fields = [field.name for field in dataclasses.fields(SelectionConfig)]
    changes: dict[str, object] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in fields:
            raise ValueError(
                f"setting {setting!r} must be field=value, field one of {', '.join(fields)}"
            )
        changes[name] = text if name in _CHOICES else _parse_number(name, text)
    return dataclasses.replace(PRESETS[preset], **changes)


def _parse_number(name: str, text: str) -> float | int | None:
    if name in ("frame_cap", "pair_dt", "policy_arg") and text.lower() == "none":
        return None
    kind = int if name in ("policy_arg", "block") else float
    try:
        return kind(text)
    except ValueError:
        what = "an integer" if kind is int else "a number"
        raise ValueError(f"{name} = {text!r} must be {what}") from None
