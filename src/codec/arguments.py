"""Options of the codec on the command line, the same for every verb."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ..sequence import NUM_SLOTS
from .config import PRESETS, SelectionConfig
from .sampling import SAMPLINGS
from .view import GEOMETRIES

VIEW_OPTIONS = ("num_frames", "sampling", "geometry", "size", "patch")


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


def add_view_arguments(
    parser: argparse.ArgumentParser,
    *,
    num_frames: int = NUM_SLOTS,
    size: int = 224,
    patch: int = 14,
    geometry: str = "crop",
) -> None:
    """Adds --num-frames, --sampling, --geometry, --size, --patch, which `view_options` reads."""
    group = parser.add_argument_group("sampling and view")
    group.add_argument(
        "--num-frames",
        type=int,
        default=num_frames,
        help=f"frames sampled evenly, 1 to {NUM_SLOTS}; any number with --set policy=groups "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--sampling",
        choices=SAMPLINGS,
        default="index",
        help="evenly by frame number or by time (default: %(default)s)",
    )
    group.add_argument(
        "--geometry",
        choices=GEOMETRIES,
        default=geometry,
        help="crop: short side to SIZE, centre; fit: long side to SIZE, whole patches; "
        "square: letterbox; squash: both sides to SIZE (default: %(default)s)",
    )
    group.add_argument(
        "--size", type=int, default=size, help="pixels, a multiple of PATCH (default: %(default)s)"
    )
    group.add_argument(
        "--patch", type=int, default=patch, help="side of a patch in pixels (default: %(default)s)"
    )


def view_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_view_arguments` added, by the names that the codec's functions give it."""
    return {name: getattr(args, name) for name in VIEW_OPTIONS}


def add_span_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --start and --end."""
    group = parser.add_argument_group("part of the video")
    group.add_argument("--start", type=float, metavar="SECONDS", help="ignore frames before it")
    group.add_argument("--end", type=float, metavar="SECONDS", help="ignore frames from it on")
