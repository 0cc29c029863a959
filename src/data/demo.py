"""`codecvit demo-data`: short clips of handwritten digits that move over photographs.

A digit moves in one of 8 ways over a part of a photograph (demo_scene.py), under a slow camera
drift that carries digit and background alike.

Why the motion class cannot be told from one frame: centre (x, y), size and angle of the digit each
lie on a track, an interval of their own, and start at a place drawn uniformly. A class moves one of
them at a constant rate, in one sense, and what leaves a track at its end comes in again at its
other end. A uniform place on a circular track stays uniform under any shift, so at every frame
all four are uniform and independent, whatever the class is. (Without the return, growing digits
would be the small ones of the first frame, and those that move right would start at the left.)
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import os
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ..files import write_atomic
from ..jobs import Failure, run_jobs
from .demo_scene import (
    ANGLES,
    MASTER,
    SIDE,
    choose_digit,
    draw_photograph,
    draw_window,
    place_digit,
)
from .progress import progress

DEMO_VERSION = 3
FRAMES = 24
FPS = 12

# Class -> the track that it moves along and the sense. y grows downwards; angles grow clockwise.
MOTIONS = {
    "right": ("x", 1),
    "left": ("x", -1),
    "down": ("y", 1),
    "up": ("y", -1),
    "clockwise": ("angle", 1),
    "counterclockwise": ("angle", -1),
    "growing": ("size", 1),
    "shrinking": ("size", -1),
}

# Sizes are logarithms of pixels.
TRACKS = {
    "x": (34.0, SIDE - 34.0),
    "y": (34.0, SIDE - 34.0),
    "size": (np.log(56.0), np.log(84.0)),
    "angle": ANGLES,
}
_TRAVEL = (0.7, 1.0)  # share of its track that a moving quantity covers in one clip
_DRIFT = 0.35  # largest camera speed along each axis, pixels a frame


@dataclasses.dataclass(frozen=True)
class ClipPlan:
    """One clip: everything drawn for it follows from these.

    Attributes:
      split: `train` or `test`.
      number: number of the clip in its split; classes and digits alternate with it.
      seed: of the whole data set.
      folder: folder of the data set.
      still: also write the clip's middle frame as a JPEG.
    """

    split: str
    number: int
    seed: int
    folder: Path
    still: bool = False

    @property
    def motion(self) -> str:
        return list(MOTIONS)[self.number % len(MOTIONS)]

    @property
    def digit(self) -> int:
        return self.number // len(MOTIONS) % 10

    @property
    def path(self) -> str:
        """Path of the clip below the folder: class folders by motion."""
        return f"{self.split}/{self.motion}/{self.number:04d}.mp4"

    @property
    def still_path(self) -> str:
        """Path of the still below the folder."""
        return f"stills/{self.number:04d}.jpg"


def draw_tracks(motion: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Centre, size and angle of the digit in every frame, without the camera.

    Args:
      motion: a key of MOTIONS.
      rng: source of all draws.

    Returns:
      `x`, `y` (pixels), `size` (log pixels) and `angle` (degrees, clockwise), float64 [FRAMES].
    """
    moving, sense = MOTIONS[motion]
    places = {}
    for name, (low, high) in TRACKS.items():
        place = np.full(FRAMES, rng.uniform())
        travel = rng.uniform(*_TRAVEL)
        if name == moving:
            place = (place + sense * travel * np.arange(FRAMES) / (FRAMES - 1)) % 1
        places[name] = low + place * (high - low)
    return places


def render(plan: ClipPlan) -> tuple[np.ndarray, np.ndarray]:
    """Draws one clip.

    Args:
      plan: which clip.

    Returns:
      uint8 [FRAMES, SIDE, SIDE, 3] and int32 [FRAMES, 4], the box (left, top, right, bottom) of the
      digit in pixels, right and bottom exclusive.
    """
    rng = np.random.default_rng([plan.seed, plan.split == "test", plan.number])
    tracks = draw_tracks(plan.motion, rng)
    speed = rng.uniform(-_DRIFT, _DRIFT, 2)
    drift_T2 = speed * (np.arange(FRAMES)[:, None] - (FRAMES - 1) / 2)
    background = draw_window(plan.split, draw_photograph(rng), drift_T2, rng)
    ink = choose_digit(plan.split, plan.digit, rng)
    colour = rng.uniform(200, 255, 3)
    frames, boxes = [], []
    for t in range(FRAMES):
        centre = tracks["x"][t] + drift_T2[t, 0], tracks["y"][t] + drift_T2[t, 1]
        side, angle = np.exp(tracks["size"][t]), np.radians(tracks["angle"][t])
        alpha = place_digit(ink, centre, side / MASTER, angle)
        boxes.append(_box(alpha > 0.5))
        alpha = alpha[..., None]
        frames.append(np.rint(background[t] * (1 - alpha) + colour * alpha).astype(np.uint8))
    return np.stack(frames), np.array(boxes, np.int32)


def photograph_of(plan: ClipPlan) -> int:
    """Which of the two photographs a clip shows: 0 a temple, 1 flowers."""
    rng = np.random.default_rng([plan.seed, plan.split == "test", plan.number])
    # The draws of `render` up to that of the photograph.
    draw_tracks(plan.motion, rng)
    rng.uniform(-_DRIFT, _DRIFT, 2)
    return draw_photograph(rng)


def write_clip(plan: ClipPlan) -> list[list[int]]:
    """Renders and encodes one clip; returns the digit's box in every frame."""
    frames, boxes = render(plan)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        codec = video_encoder()
        options = {"crf": "18", "preset": "veryfast"} if codec == "libx264" else {"qscale": "3"}
        stream = container.add_stream(codec, rate=Fraction(FPS), options=options)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # threads would cut the picture into other slices
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    write_atomic(plan.folder / plan.path, file.getvalue())
    if plan.still:
        picture = io.BytesIO()
        Image.fromarray(frames[FRAMES // 2]).save(picture, "JPEG", quality=95)
        write_atomic(plan.folder / plan.still_path, picture.getvalue())
    return boxes.tolist()


def video_encoder() -> str:
    """libx264 where this FFmpeg has it (it is GPL), else FFmpeg's own MPEG-4 encoder."""
    return "libx264" if "libx264" in av.codecs_available else "mpeg4"


def write_demo(
    folder: Path,
    train_clips: int = 800,
    test_clips: int = 320,
    seed: int = 0,
    workers: int = 0,
    stills: bool = False,
) -> bool:
    """Writes the data set: clips in class folders, train.csv, test.csv, boxes.json, demo.json.

    Args:
      folder: where to; made if needed.
      train_clips: number of training clips.
      test_clips: number of test clips.
      seed: of everything that is drawn.
      workers: processes; 0 works in this one.
      stills: also write the middle frame of every training clip, stills/NUMBER.jpg.

    Returns:
      Whether it had to be written: False if it was there already.

    Raises:
      ValueError: the folder holds a data set of other options, or a count is not positive.
    """
    for name, count in (("train", train_clips), ("test", test_clips)):
        if count < 1:
            raise ValueError(f"{name}_clips = {count} must be at least 1")
    options = {
        "version": DEMO_VERSION,
        "seed": seed,
        "train_clips": train_clips,
        "test_clips": test_clips,
        "encoder": video_encoder(),
        "stills": stills,
    }
    mark = folder / "demo.json"
    if mark.is_file():
        existing = json.loads(mark.read_text(encoding="utf-8"))
        if {"stills": False, **existing} != options:
            raise ValueError(f"{folder} holds demo data made with {existing}: choose another --out")
        return False
    plans = [
        ClipPlan(split, number, seed, folder, stills and split == "train")
        for split, count in (("train", train_clips), ("test", test_clips))
        for number in range(count)
    ]
    for plan in plans:
        (folder / plan.path).parent.mkdir(parents=True, exist_ok=True)
    if stills:
        (folder / "stills").mkdir(exist_ok=True)
    boxes = {}
    for plan, result in progress(run_jobs(write_clip, plans, workers=workers), len(plans), "clips"):
        if isinstance(result, Failure):
            raise ValueError(f"{plan.path}: {result.kind}: {result.reason}")
        boxes[plan.path] = result
    for split in ("train", "test"):
        _write_table(folder / f"{split}.csv", [plan for plan in plans if plan.split == split])
    write_atomic(folder / "boxes.json", json.dumps(boxes).encode())
    write_atomic(mark, json.dumps(options, indent=1).encode())
    return True


def main(argv: list[str]) -> int:
    """The verb: returns 0, or 1 if the data set cannot be written."""
    parser = argparse.ArgumentParser(
        prog="codecvit demo-data",
        description="Writes short clips of digits moving over photographs: train/ and test/ with a "
        "folder per motion, train.csv and test.csv (path,motion,digit), boxes.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--train-clips", type=int, default=800, help="number of training clips")
    parser.add_argument("--test-clips", type=int, default=320, help="number of test clips")
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes; 0 works in this one",
    )
    parser.add_argument(
        "--stills", action="store_true", help="also the middle frame of every training clip"
    )
    parser.add_argument(
        "--pairs",
        action="store_true",
        help="instead, pictures of digits with captions; where OUT holds the clips, captions of "
        "these, too",
    )
    parser.add_argument("--train-pairs", type=int, default=4000, help="with --pairs: for training")
    parser.add_argument("--test-pairs", type=int, default=500, help="with --pairs: for test")
    args = parser.parse_args(argv)
    if args.pairs:
        return _main_pairs(args)
    try:
        written = write_demo(
            args.out, args.train_clips, args.test_clips, args.seed, args.workers, args.stills
        )
    except ValueError as error:
        print(f"codecvit demo-data: {error}", file=sys.stderr)
        return 1
    if written and video_encoder() != "libx264":
        print("note: this FFmpeg has no libx264; the clips are MPEG-4 instead of H.264")
    state = "wrote" if written else "found"
    print(f"{args.out}: {state} {args.train_clips} training and {args.test_clips} test clips")
    return 0


def _main_pairs(args: argparse.Namespace) -> int:
    from .demo_pairs import write_demo_pairs

    try:
        written = write_demo_pairs(
            args.out, args.train_pairs, args.test_pairs, args.seed, args.workers
        )
    except ValueError as error:
        print(f"codecvit demo-data: {error}", file=sys.stderr)
        return 1
    state = "wrote" if written else "found"
    print(f"{args.out}: {state} {args.train_pairs} training and {args.test_pairs} test pairs")
    return 0


def _write_table(path: Path, plans: list[ClipPlan]) -> None:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["path", "motion", "digit"])
    table.writerows([plan.path, plan.motion, plan.digit] for plan in plans)
    write_atomic(path, file.getvalue().encode())


def _box(inside: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
