"""`codecvit show`: what the codec selection keeps of one video, as a sheet or as an animation."""

from __future__ import annotations

import argparse
import io
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import write_atomic
from .animation import SUFFIXES, animation, gif_bytes, mp4_bytes
from .arguments import (
    add_selection_arguments,
    add_span_arguments,
    add_view_arguments,
    view_options,
)
from .clip import sample_clip
from .config import selection_config
from .pack import check_options
from .panels import Picked, tiles
from .selection import choose_groups
from .view import View

_TILE = 200  # pixels: smaller views are enlarged to at least this
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def main(argv: list[str]) -> int:
    """Runs the verb.

    Args:
      argv: the arguments after the verb.

    Returns:
      0, or 1 where the file or an option is unusable.
    """
    args = _parser().parse_args(argv)
    try:
        print(_show(args))
    except (ValueError, OSError) as error:
        print(f"codecvit show: {error}", file=sys.stderr)
        return 1
    return 0


def _show(args: argparse.Namespace) -> str:
    out = Path(args.out)
    kind = out.suffix.lower()
    if kind not in (*SUFFIXES, *_PICTURES):
        raise ValueError(f"--out {out}: must end in one of {', '.join((*SUFFIXES, *_PICTURES))}")
    for name, least in (("frames", 1), ("fps", 0.1), ("seconds", 0.1)):
        if not (math.isfinite(getattr(args, name)) and getattr(args, name) >= least):
            raise ValueError(f"--{name} = {getattr(args, name)} must be at least {least}")
    config = selection_config(args.preset, args.set)
    view = View(args.geometry, args.size, args.patch)
    check_options("codec", args.num_frames, args.budget, view, config)
    clip = sample_clip(
        args.video, start=args.start, end=args.end, config=config, **view_options(args)
    )
    picked = Picked.of(clip, choose_groups(clip, args.budget))
    if kind in SUFFIXES:
        pictures = animation(
            args.video,
            view,
            picked,
            rate=args.fps,
            seconds=args.seconds,
            heatmap=args.heatmap,
        )
        data = (gif_bytes if kind == ".gif" else mp4_bytes)(pictures, args.fps)
    else:
        sheet = contact_sheet(picked, args.frames, Path(args.video).name, args.heatmap)
        file = io.BytesIO()
        sheet.save(file, Image.registered_extensions()[kind])
        data = file.getvalue()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, data)
    kept = f"{picked.lit_MRC.sum()} of {picked.lit_MRC.size} patches of {len(clip)} frames"
    groups = f" in {picked.groups} groups" if picked.groups > 1 else ""
    return f"{out}: {kept}{groups}"


def contact_sheet(picked: Picked, frames: int, title: str, heatmap: bool = False) -> Image.Image:
    """Evenly chosen frames side by side, the chosen patches as they are, the rest grey and dark.

    Args:
      picked: the clip and what was chosen of it.
      frames: most frames to draw; the first and the last are among them.
      title: heads the sheet.
      heatmap: show each frame under its saliency instead.

    Returns:
      The picture, as square as the number of tiles allows.
    """
    count = len(picked.clip)
    shown = np.rint(np.linspace(0, count - 1, min(frames, count))).astype(np.int64)
    draw = picked.heated if heatmap else picked.lit
    zoom = -(-_TILE // max(picked.clip.luma_MHW.shape[1:]))
    kept, size = int(picked.lit_MRC.sum()), picked.lit_MRC.size
    head = f"{title}   {kept} patches kept of {size} in {count} frames"
    columns = int(np.ceil(np.sqrt(len(shown))))
    labels = [picked.label(int(frame)) for frame in shown]
    return tiles([draw(int(frame)) for frame in shown], labels, columns, zoom, head)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit show",
        description="Draws what the codec selection keeps of a video: sampled frames with the "
        "chosen patches lit (a picture), or video, samples, saliency and choice side by side as "
        "they play (.mp4, .gif). A label gives a frame's time, its picture type and its share of "
        "the budget.",
        epilog="example: codecvit show clip.mp4 --out clip.gif --set scale=sqrt --set w_mv=0.5",
    )
    parser.add_argument("video", metavar="VIDEO", help="a video, or a folder of numbered images")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help=f"{', '.join((*_PICTURES, *SUFFIXES))}"
    )
    parser.add_argument("--heatmap", action="store_true", help="lay the saliency over the frames")
    parser.add_argument(
        "--frames", type=int, default=16, help="most frames of a picture (default: %(default)s)"
    )
    parser.add_argument(
        "--fps", type=float, default=12, help="of an animation (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=10, help="of an animation, at most (default: %(default)s)"
    )
    parser.add_argument(
        "--budget", type=int, default=2048, help="most patches to keep (default: %(default)s)"
    )
    add_view_arguments(parser)
    add_span_arguments(parser)
    add_selection_arguments(parser)
    return parser
