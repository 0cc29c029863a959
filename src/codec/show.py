"""`codecvit show`: a contact sheet of what the codec selection keeps of one video."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..sequence import PatchSequence, slot_times
from .arguments import add_selection_arguments, add_span_arguments, add_view_arguments
from .clip import Clip, sample_clip
from .config import selection_config
from .pack import check_options
from .selection import select
from .view import View

_GAP = 6  # pixels between tiles
_TILE = 200  # pixels: smaller views are enlarged to at least this
_STRIP = 20  # pixels for the text under a tile
_PAPER = (18, 18, 18)
_INK = (235, 235, 235)
_DIM = 0.28


def main(argv: list[str]) -> int:
    """Runs the verb.

    Args:
      argv: the arguments after the verb.

    Returns:
      0, or 1 where the file or an option is unusable.
    """
    args = _parser().parse_args(argv)
    try:
        if args.frames < 1:
            raise ValueError(f"--frames = {args.frames} must be at least 1")
        config = selection_config(args.preset, args.set)
        view = View(args.geometry, args.size, args.patch)
        check_options("codec", args.num_frames, args.budget, view, config)
        clip = sample_clip(
            args.video,
            args.num_frames,
            args.size,
            args.patch,
            args.start,
            args.end,
            geometry=args.geometry,
            sampling=args.sampling,
            config=config,
        )
        (chosen,) = select(clip, "codec", args.budget)
        out = Path(args.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(clip, chosen, args.frames, Path(args.video).name).save(out)
    except (ValueError, OSError) as error:
        print(f"codecvit show: {error}", file=sys.stderr)
        return 1
    patches = len(clip) * clip.rows * clip.columns
    print(f"{out}: {len(chosen)} of {patches} patches of {len(clip)} frames")
    return 0


def contact_sheet(clip: Clip, chosen: PatchSequence, frames: int, title: str) -> Image.Image:
    """Evenly chosen frames side by side, the chosen patches as they are, the rest grey and dark.

    Args:
      clip: the decoded clip.
      chosen: its codec selection.
      frames: most frames to draw; the first and the last are among them.
      title: heads the sheet.

    Returns:
      The picture, as square as the number of tiles allows.
    """
    shown = np.rint(np.linspace(0, len(clip) - 1, min(frames, len(clip)))).astype(np.int64)
    lit = _lit_patches(clip, chosen)
    columns = int(np.ceil(np.sqrt(len(shown))))
    rows = -(-len(shown) // columns)
    height, width = clip.luma_MHW.shape[1:]
    zoom = -(-_TILE // max(height, width))
    cell_width, cell_height = width * zoom + _GAP, height * zoom + _STRIP + _GAP
    sheet = Image.new(
        "RGB", (columns * cell_width + _GAP, rows * cell_height + _STRIP + 2 * _GAP), _PAPER
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    head = f"{title}   {len(chosen)} patches kept of {lit.size} in {len(clip)} frames"
    draw.text((_GAP, _GAP), head, fill=_INK, font=font)
    for i, frame in enumerate(shown):
        left = _GAP + i % columns * cell_width
        top = _STRIP + 2 * _GAP + i // columns * cell_height
        picture = Image.fromarray(_dimmed(clip, int(frame), lit[frame]))
        picture = picture.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        sheet.paste(picture, (left, top))
        label = f"{clip.seconds_M[frame]:.2f} s   {lit[frame].sum()} patches"
        draw.text((left, top + height * zoom + 2), label, fill=_INK, font=font)
    return sheet


def _lit_patches(clip: Clip, chosen: PatchSequence) -> np.ndarray:
    """bool [frames, rows, columns]."""
    lit = np.zeros((len(clip), clip.rows, clip.columns), bool)
    slot, h, w = chosen.positions.T
    lit[np.searchsorted(slot_times(len(clip)), slot), h, w] = True
    return lit


def _dimmed(clip: Clip, frame: int, lit: np.ndarray) -> np.ndarray:
    rgb = clip.rgb(np.array([frame]))[0]
    grey = (rgb.mean(axis=2, keepdims=True) * _DIM).astype(np.uint8)
    mask = lit.repeat(clip.patch, axis=0).repeat(clip.patch, axis=1)
    return np.where(mask[..., None], rgb, grey)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit show",
        description="Draws sampled frames of a video with the patches lit that the codec selection "
        "keeps. The first frame is always kept whole.",
        epilog="example: codecvit show clip.mp4 --out clip.png --set scale=sqrt --set w_mv=0.5",
    )
    parser.add_argument("video", metavar="VIDEO", help="any video file that FFmpeg reads")
    parser.add_argument("--out", required=True, metavar="PNG", help="the picture to write")
    parser.add_argument(
        "--frames", type=int, default=16, help="most frames to draw (default: %(default)s)"
    )
    parser.add_argument(
        "--budget", type=int, default=2048, help="most patches to keep (default: %(default)s)"
    )
    add_view_arguments(parser)
    add_span_arguments(parser)
    add_selection_arguments(parser)
    return parser
