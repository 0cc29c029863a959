"""Options of the codec selection, their presets and their form on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence

from ..sequence import NUM_SLOTS

SCALES = ("clip", "sqrt", "frame")
CAMERAS = ("similarity", "median", "none")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} = {value!r} must be one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """What makes a patch worth keeping.

    Attributes:
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
    """

    scale: str = "clip"
    camera: str = "similarity"
    w_res: float = 1.0
    w_mv: float = 0.3
    frame_cap: float | None = None

    def __post_init__(self) -> None:
        _require_choice("scale", self.scale, SCALES)
        _require_choice("camera", self.camera, CAMERAS)
        for name in ("w_res", "w_mv"):
            value = getattr(self, name)
            if not (_is_number(value) and value >= 0):
                raise ValueError(f"{name} = {value!r} must be a finite number of at least 0")
        if self.w_res == 0 and self.w_mv == 0:
            raise ValueError("w_res = 0 and w_mv = 0: at least one of them must be positive")
        cap = self.frame_cap
        if cap is not None and not (_is_number(cap) and 0 < cap <= 1):
            raise ValueError(f"frame_cap = {cap!r} must be None or a share with 0 < share <= 1")


PRESETS = {
    "default": SelectionConfig(),
    # The normalisation, camera model and weights of the published OneVision-Encoder tools.
    "published": SelectionConfig(scale="frame", camera="median", w_res=1.0, w_mv=1.0),
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
    _require_choice("preset", preset, tuple(PRESETS))
    fields = [field.name for field in dataclasses.fields(SelectionConfig)]
    changes: dict[str, object] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in fields:
            raise ValueError(
                f"setting {setting!r} must be field=value, field one of {', '.join(fields)}"
            )
        changes[name] = text if name in ("scale", "camera") else _number(name, text)
    return dataclasses.replace(PRESETS[preset], **changes)


def add_selection_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --preset and --set, which `selection_config(args.preset, args.set)` reads."""
    group = parser.add_argument_group("codec selection")
    group.add_argument(
        "--preset", default="default", choices=sorted(PRESETS), help="default: %(default)s"
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change one field of the preset: "
        + ", ".join(f"{f.name} (default {f.default})" for f in dataclasses.fields(SelectionConfig)),
    )


def _number(name: str, text: str) -> float | None:
    if name == "frame_cap" and text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} = {text!r} must be a number") from None


def add_geometry_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --num-frames, --budget, --size, --patch, --start, --end: arguments of `pack_video`."""
    group = parser.add_argument_group("sampling and view")
    for name, default, text in (
        ("num-frames", NUM_SLOTS, f"frames sampled evenly, 1 to {NUM_SLOTS}"),
        ("budget", 2048, "most patches to keep, at least those of one frame"),
        ("size", 224, "side of the square view in pixels, a multiple of the patch"),
        ("patch", 14, "side of a patch in pixels"),
    ):
        group.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default: {default})"
        )
    group.add_argument("--start", type=float, metavar="SECONDS", help="ignore frames before it")
    group.add_argument("--end", type=float, metavar="SECONDS", help="ignore frames from it on")
