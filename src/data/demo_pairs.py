"""`codecvit demo-data --pairs`: digits over photographs, with captions made by template.

The digits, photographs and splits are those of demo_scene.py: training and test share no digit
image and no photograph region. What a caption says is true of its picture: digit, colour, size,
place and photograph are drawn independently of each other. Two styles of captions: short ones that
leave much out, as on the web, and two or three full sentences, as a captioning model writes.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import write_atomic
from ..jobs import Failure, run_jobs
from .demo import MOTIONS, ClipPlan, photograph_of
from .demo_scene import SIDE, draw_still
from .progress import progress
from .records import json_lines

PAIRS_VERSION = 3
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SCENES = ("a temple", "flowers")
COLOURS = {
    "white": (250, 250, 250),
    "red": (255, 60, 50),
    "green": (70, 230, 80),
    "blue": (80, 140, 255),
    "yellow": (250, 230, 50),
}
SIZES = {"small": (58.0, 66.0), "big": (84.0, 92.0)}  # pixels
_ROWS, _COLUMNS = ("top", "", "bottom"), ("left", "", "right")
_CENTRES = (SIDE / 2 - 16, SIDE / 2, SIDE / 2 + 16)
_SPREAD = 2.0  # pixels around a centre

# What is easy to see must not tell pictures apart alone: of colours and digits together, a small
# model learns the colours (docs/results.md).
_WEB = ("the number {digit}", "a {digit} over {scene}", "{digit} , written by hand", "{digit}")
_SENTENCES = (
    "A {size} {colour} {digit} is at the {place}.",
    "The background shows {scene}.",
)
_CLIP_WEB = ("a {digit} {moving} over {scene}", "{digit} {moving}", "a video of a {digit}")
_CLIP_SENTENCES = ("A {digit} is {moving}.", "The background shows {scene}.")
_EXTRA = ("It is a digit.", "It was written by hand.")  # one of them, in every second caption
_PROMPTS = ("a photo of a {digit} .", "a picture of the number {digit} .")  # of a classifier


@dataclasses.dataclass(frozen=True)
class PairPlan:
    """One picture: everything drawn for it follows from these.

    Attributes:
      split: `train` or `test`.
      number: number of the picture in its split; digits alternate with it.
      seed: of the whole data set.
      folder: folder of the data set.
    """

    split: str
    number: int
    seed: int
    folder: Path

    @property
    def digit(self) -> int:
        return self.number % len(DIGITS)

    @property
    def path(self) -> str:
        """Path of the picture below the folder."""
        return f"images/{self.split}/{self.number:05d}.jpg"


def draw_pair(plan: PairPlan) -> tuple[np.ndarray, dict[str, Any]]:
    """Draws one picture and its captions.

    Args:
      plan: which one.

    Returns:
      uint8 [SIDE, SIDE, 3], and its row of the table.
    """
    rng = np.random.default_rng([plan.seed, 2 + (plan.split == "test"), plan.number])
    colour, size = rng.choice(list(COLOURS)), rng.choice(list(SIZES))
    row, column = rng.integers(3, size=2)
    scene = int(rng.integers(len(SCENES)))
    x, y = (_CENTRES[place] + rng.uniform(-_SPREAD, _SPREAD) for place in (column, row))
    pixels = draw_still(
        plan.split, plan.digit, scene, (x, y), rng.uniform(*SIZES[size]), COLOURS[colour], rng
    )
    facts = {
        "digit": DIGITS[plan.digit],
        "colour": str(colour),
        "size": str(size),
        "place": " ".join(filter(None, (_ROWS[row], _COLUMNS[column]))) or "middle",
        "scene": SCENES[scene],
    }
    return pixels, {
        "key": f"{plan.split}-{plan.number:05d}",
        "path": plan.path,
        "caption": _web(_WEB, facts, rng),
        "re_caption": _synthetic(_SENTENCES, facts, rng),
        "label": plan.digit,
        "class_name": DIGITS[plan.digit],
        **facts,
    }


def write_pair(plan: PairPlan) -> dict[str, Any]:
    """Draws and writes one picture; returns its row of the table."""
    pixels, row = draw_pair(plan)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    write_atomic(plan.folder / plan.path, file.getvalue())
    return row


def clip_row(plan: ClipPlan) -> dict[str, Any]:
    """The row of a clip of demo.py: its captions say how the digit moves."""
    rng = np.random.default_rng([plan.seed, 4 + (plan.split == "test"), plan.number])
    track, _ = MOTIONS[plan.motion]
    verb = {"x": "moving ", "y": "moving ", "angle": "turning ", "size": ""}[track]
    facts = {
        "digit": DIGITS[plan.digit],
        "moving": verb + plan.motion,
        "scene": SCENES[photograph_of(plan)],
    }
    return {
        "key": f"{plan.split}-{plan.number:04d}",
        "video": plan.path,
        "caption": _web(_CLIP_WEB, facts, rng),
        "re_caption": _synthetic(_CLIP_SENTENCES, facts, rng),
        **facts,
    }


def write_demo_pairs(
    folder: Path,
    train_pairs: int = 4000,
    test_pairs: int = 500,
    seed: int = 0,
    workers: int = 0,
) -> bool:
    """Writes train.jsonl, test.jsonl, images/, classes.txt, vocab.txt and demo_pairs.json.

    Where the folder holds the clips of demo.py, also clips_train.jsonl and clips_test.jsonl.

    Args:
      folder: where to; made if needed.
      train_pairs: number of training pictures.
      test_pairs: number of test pictures.
      seed: of everything that is drawn.
      workers: processes; 0 works in this one.

    Returns:
      Whether it had to be written: False if it was there already.

    Raises:
      ValueError: the folder holds pairs of other options, or a count is not positive.
    """
    counts = {"train": train_pairs, "test": test_pairs}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}_pairs = {count} must be at least 1")
    clips = _clips(folder)
    options = {
        "version": PAIRS_VERSION,
        "seed": seed,
        "train_pairs": train_pairs,
        "test_pairs": test_pairs,
        "clips": {split: len(plans) for split, plans in clips.items()},
    }
    mark = folder / "demo_pairs.json"
    if mark.is_file():
        existing = json.loads(mark.read_text(encoding="utf-8"))
        if existing == options:
            return False
        if {**existing, "clips": options["clips"]} != options:
            raise ValueError(f"{folder} holds pairs made with {existing}: choose another --out")
    for split, count in counts.items():
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        plans = [PairPlan(split, number, seed, folder) for number in range(count)]
        rows = []
        results = run_jobs(write_pair, plans, workers=workers)
        for plan, row in progress(results, len(plans), f"{split} pairs"):
            if isinstance(row, Failure):
                raise ValueError(f"{plan.path}: {row.kind}: {row.reason}")
            rows.append(row)
        write_atomic(folder / f"{split}.jsonl", json_lines(rows))
    for split, plans in clips.items():
        write_atomic(folder / f"clips_{split}.jsonl", json_lines([clip_row(p) for p in plans]))
    write_atomic(folder / "classes.txt", _lines(DIGITS))
    write_atomic(folder / "vocab.txt", _lines(vocabulary()))
    write_atomic(mark, json.dumps(options, indent=1).encode())
    return True


def vocabulary() -> list[str]:
    """A WordPiece vocabulary of every word that a caption may hold, and of letters for others."""
    words = set()
    texts = (*_WEB, *_SENTENCES, *_CLIP_WEB, *_CLIP_SENTENCES, *_EXTRA, *_PROMPTS)
    for text in texts:
        words |= {word.strip(".,").lower() for word in text.split() if "{" not in word}
    for text in (*DIGITS, *SCENES, *COLOURS, *SIZES, *_ROWS, *_COLUMNS, *MOTIONS):
        words |= set(text.split())
    words |= {"middle", "moving", "turning"}
    letters = [chr(ord("a") + number) for number in range(26)]
    single = sorted({*letters, *"0123456789.,!?'-"})
    special = ["[PAD]", "[bos]", "[eos]", "[UNK]", "[CLS]"]
    longer = sorted(words - set(single) - {""})
    return [*special, *single, *(f"##{letter}" for letter in letters), *longer]


def _web(templates: Sequence[str], facts: Mapping[str, str], rng: np.random.Generator) -> str:
    return templates[rng.integers(len(templates))].format(**facts)


def _synthetic(sentences: Sequence[str], facts: Mapping[str, str], rng: np.random.Generator) -> str:
    extra = [_EXTRA[rng.integers(len(_EXTRA))]] if rng.integers(2) else []
    return " ".join(sentence.format(**facts) for sentence in (*sentences, *extra))


def _clips(folder: Path) -> dict[str, list[ClipPlan]]:
    """The clips that a folder holds."""
    mark = folder / "demo.json"
    if not mark.is_file():
        return {}
    made = json.loads(mark.read_text(encoding="utf-8"))
    return {
        split: [ClipPlan(split, n, made["seed"], folder) for n in range(made[f"{split}_clips"])]
        for split in ("train", "test")
    }


def _lines(words: Sequence[str]) -> bytes:
    return "".join(f"{word}\n" for word in words).encode()
