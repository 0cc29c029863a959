"""`codecvit llava demo-questions`: questions about the demo clips, to train on and to be tested on.

Two are asked: which way the digit moves (8 ways) and which digit it is (10). A training row is a
conversation about one clip that asks both, each openly and with lettered options in a drawn order;
the test asks with options alone, in the format of MERV's benchmarks. The answer is the text of the
option ("left"), which the strategy `letter` reads as it reads a letter: to look up the letter of
one of eight texts is more than a tiny language model learns in some hundred steps.

    OUT/open.json                         the first lesson: motion alone, asked openly
    OUT/train.json                        the second: everything; rows for `codecvit llava data`
    OUT/benchmark/test_q.json, test_a.json, videos -> DATA/test
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_atomic
from .mcq.parse import strategy_named
from .mcq.questions import Question

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclasses.dataclass(frozen=True)
class Subject:
    """Something that is asked about a clip.

    Attributes:
      name: the task, in results; a column of the demo data's tables.
      text: the question.
      options: what may be the answer.
    """

    name: str
    text: str
    options: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class DemoClip:
    """A row of the demo data's train.csv or test.csv.

    Attributes:
      path: of the clip, relative to the data's folder.
      truths: number of the right option by name of the subject.
    """

    path: str
    truths: dict[str, int]


def read_clips(data: Path) -> tuple[list[Subject], dict[str, list[DemoClip]]]:
    """The subjects and the clips of a demo data set.

    Args:
      data: what `codecvit demo-data` wrote.

    Returns:
      (motion and digit, clips by split).

    Raises:
      ValueError: the folder holds no demo data, or test has a motion that training lacks.
    """
    tables = {split: _table(data / f"{split}.csv") for split in ("train", "test")}
    # In the order of their first clips, which is that of the demo's own list.
    motions = tuple(dict.fromkeys(row["motion"] for row in tables["train"]))
    strange = {row["motion"] for row in tables["test"]} - set(motions)
    if strange:
        raise ValueError(f"{data / 'test.csv'}: no training clip moves like {sorted(strange)}")
    if len(motions) < 2:
        raise ValueError(f"{data / 'train.csv'}: all clips move alike: make more training clips")
    subjects = [
        Subject("motion", "Which way does the digit move?", motions),
        Subject("digit", "Which digit is it?", DIGITS),
    ]
    clips = {
        split: [
            DemoClip(
                row["path"],
                {"motion": motions.index(row["motion"]), "digit": int(row["digit"])},
            )
            for row in table
        ]
        for split, table in tables.items()
    }
    return subjects, clips


def lettered(
    subject: Subject, clip: DemoClip, name: str, index: int, video: str, rng: np.random.Generator
) -> Question:
    """A question with its options in a drawn order."""
    order = rng.permutation(len(subject.options)).tolist()
    return Question(
        index=index,
        id=name,
        task=subject.name,
        text=subject.text,
        options=tuple(subject.options[i] for i in order),
        answer=order.index(clip.truths[subject.name]),
        video=video,
    )


def training_row(
    clip: DemoClip, number: int, subjects: Sequence[Subject], rng: np.random.Generator
) -> dict[str, Any]:
    """A conversation about one clip: every subject openly and with options, in a drawn order.

    The text of a question with options is that of `codecvit llava eval`, byte for byte.

    Args:
      clip: the clip.
      number: part of the row's id.
      subjects: what is asked.
      rng: source of all draws.
    """
    strategy = strategy_named("letter")
    exchanges = []
    for subject in subjects:
        question = lettered(subject, clip, "", 0, clip.path, rng)
        for text in (subject.text, strategy.prompt(question)):
            exchanges.append((text, question.options[question.answer]))
    turns = []
    for place, i in enumerate(rng.permutation(len(exchanges)).tolist()):
        text, answer = exchanges[i]
        shown = f"<video>\n{text}" if place == 0 else text
        turns += [{"from": "human", "value": shown}, {"from": "gpt", "value": answer}]
    return {"id": f"demo-{number:06d}", "video": clip.path, "conversations": turns}


def open_row(clip: DemoClip, number: int, subject: Subject) -> dict[str, Any]:
    """One open question about a clip: the shortest way to say what is to be seen."""
    turns = [
        {"from": "human", "value": f"<video>\n{subject.text}"},
        {"from": "gpt", "value": subject.options[clip.truths[subject.name]]},
    ]
    return {"id": f"open-{number:06d}", "video": clip.path, "conversations": turns}


def write_questions(
    data: str | Path, out: str | Path, variants: int = 3, seed: int = 0
) -> tuple[int, int]:
    """Writes the training rows of both lessons, and the benchmark.

    Args:
      data: what `codecvit demo-data` wrote.
      out: folder of the results.
      variants: rows per training clip in the second lesson, each with orders of its own.
      seed: of all draws.

    Returns:
      (training rows of the second lesson, test questions).

    Raises:
      ValueError: `data` is no demo data set, or `variants` is below 1.
    """
    data, out = Path(data), Path(out)
    if variants < 1:
        raise ValueError(f"variants = {variants} must be at least 1")
    subjects, clips = read_clips(data)
    rng = np.random.default_rng([seed, 0])
    rows = [
        training_row(clip, number, subjects, rng)
        for number, clip in enumerate(clips["train"] * variants)
    ]
    rng = np.random.default_rng([seed, 1])
    questions, answers = [], []
    for number, clip in enumerate(clips["test"]):
        name = str(Path(clip.path).relative_to("test").with_suffix("").as_posix())
        for subject in subjects:
            question = lettered(subject, clip, f"{subject.name}-{number:04d}", 0, name, rng)
            questions.append(
                {
                    "video_name": name,
                    "question_id": question.id,
                    "task": subject.name,
                    "question": question.text,
                    "options": list(question.options),
                    "num_option": len(question.options),
                }
            )
            answers.append(
                {
                    "video_name": name,
                    "question_id": question.id,
                    "answer": question.options[question.answer],
                    "answer_id": question.answer,
                }
            )
    benchmark = out / "benchmark"
    benchmark.mkdir(parents=True, exist_ok=True)
    _link(benchmark / "videos", data / "test")
    opened = [open_row(clip, i, subjects[0]) for i, clip in enumerate(clips["train"])]
    write_atomic(out / "open.json", _json(opened))
    write_atomic(out / "train.json", _json(rows))
    write_atomic(benchmark / "test_a.json", _json(answers))
    write_atomic(benchmark / "test_q.json", _json(questions))
    return len(rows), len(questions)


def main(argv: list[str]) -> int:
    """The verb: returns 0, or 1 if the questions cannot be made."""
    parser = argparse.ArgumentParser(
        prog="codecvit llava demo-questions",
        description="Writes questions about the clips of `codecvit demo-data`: training rows for "
        "`codecvit llava data`, and a multiple-choice benchmark for `codecvit llava eval`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the demo data")
    parser.add_argument("--out", type=Path, required=True, help="folder of the questions")
    parser.add_argument("--variants", type=int, default=3, help="training rows per clip")
    parser.add_argument("--seed", type=int, default=0, help="of orders of options and questions")
    args = parser.parse_args(argv)
    try:
        rows, questions = write_questions(args.data, args.out, args.variants, args.seed)
    except (ValueError, OSError) as error:
        print(f"codecvit llava demo-questions: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {rows} training rows, {questions} test questions")
    return 0


def _table(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist: make it with `codecvit demo-data`")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if not {"path", "motion", "digit"} <= row.keys() or row["digit"] not in "0123456789":
            raise ValueError(f"{path}: a row lacks path, motion or digit: {row}")
    if not rows:
        raise ValueError(f"{path} lists no clips")
    return rows


def _link(link: Path, target: Path) -> None:
    """Makes `link` lead to the folder `target`, relative, so that both can be moved together."""
    place = os.path.relpath(target.absolute(), link.parent.absolute())
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise ValueError(f"{link} is no link to clips: choose another --out")
    link.symlink_to(place, target_is_directory=True)


def _json(rows: list[dict[str, Any]]) -> bytes:
    return (json.dumps(rows, indent=1) + "\n").encode()
