"""Multiple-choice questions as MERV and MVBench publish them, read as they are.

MERV (github.com/princetonvisualai/merv, eval_data/): `test_q.json`, `test_a.json`, `videos/`.
MVBench: 20 task files in `json/`, clips in `video/`, see mvbench.py.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import math
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ...codec.image_folder import RATE_FILE
from ...codec.llava.span import Span
from .mvbench import MVBENCH, RATE

FORMATS = ("merv", "mvbench")
LETTERS = string.ascii_uppercase
_NO_VIDEO = frozenset({".json", ".jsonl", ".txt", ".srt", ".vtt", ".npy", ".part"})

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Question:
    """One question with its options; exactly one is right.

    Attributes:
      index: place in the benchmark, from 0.
      id: as the benchmark calls it.
      task: what results are grouped by.
      text: the question.
      options: 2 to 26 answers.
      answer: index of the right one.
      video: path below the benchmark's folder, whether or not it exists.
      span: the part of the video that is meant.
    """

    index: int
    id: str
    task: str
    text: str
    options: tuple[str, ...]
    answer: int
    video: str
    span: Span = dataclasses.field(default_factory=Span)

    def __post_init__(self) -> None:
        if not 2 <= len(self.options) <= len(LETTERS):
            raise ValueError(
                f"question {self.id}: {len(self.options)} options, there must be 2 to "
                f"{len(LETTERS)}"
            )
        if not 0 <= self.answer < len(self.options):
            raise ValueError(
                f"question {self.id}: the answer has number {self.answer} among "
                f"{len(self.options)} options"
            )

    @property
    def letters(self) -> str:
        """The letters of the options: "ABC" for three."""
        return LETTERS[: len(self.options)]

    @property
    def row(self) -> dict[str, Any]:
        """What `codecvit.codec.llava.key_of` and `llava assets` take: the video and its span."""
        return {"video": self.video, **self.span.row()}

    def blank(self) -> dict[str, Any]:
        """The fields of a record that only questions of this kind have."""
        return {
            "options": list(self.options),
            "answer": self.answer,
            "truth": LETTERS[self.answer],
            "prediction": None,
            "correct": False,
            "scores": None,
            "tie": False,
        }


def read_questions(folder: str | Path, form: str | None = None) -> tuple[list[Question], str]:
    """Reads a benchmark.

    Args:
      folder: of `test_q.json` or of MVBench's `json/`.
      form: one of FORMATS; None recognises it.

    Returns:
      (questions in the order of the files, the format).

    Raises:
      ValueError: neither format, or a question that cannot be asked.
      OSError: a file cannot be read.
    """
    folder = Path(folder)
    form = _recognise(folder) if form is None else form
    if form not in FORMATS:
        raise ValueError(f"format = {form!r} must be one of {', '.join(FORMATS)}")
    questions = _read_merv(folder) if form == "merv" else _read_mvbench(folder)
    if not questions:
        raise ValueError(f"{folder} holds no questions")
    return questions, form


def chunk(items: Sequence[Item], number: int, count: int) -> Sequence[Item]:
    """Part `number` of `count` contiguous parts whose sizes differ by at most 1.

    There are always `count` parts; some are empty if there are fewer items.
    """
    assert 0 <= number < count, (number, count)
    return items[number * len(items) // count : (number + 1) * len(items) // count]


def questions_hash(questions: Iterable[Question]) -> str:
    """16 hex digits that change with any text, option, truth, order, video or span."""
    digest = hashlib.sha256()
    for question in questions:
        line = json.dumps(dataclasses.asdict(question), sort_keys=True)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()[:16]


def _recognise(folder: Path) -> str:
    if (folder / "test_q.json").is_file():
        return "merv"
    if any((_mvbench_json(folder) / task.json).is_file() for task in MVBENCH.values()):
        return "mvbench"
    raise ValueError(
        f"{folder} holds neither test_q.json (MERV) nor a task file of MVBench such as "
        "json/action_sequence.json"
    )


def _read_merv(folder: Path) -> list[Question]:
    answers = {}
    for row in read_rows(folder / "test_a.json"):
        name = str(field_of(row, "question_id", folder / "test_a.json"))
        if name in answers:
            raise ValueError(f"{folder / 'test_a.json'}: two answers of question_id {name}")
        answers[name] = row
    paths = Videos(folder / "videos")
    questions, seen = [], set()
    for row in read_rows(folder / "test_q.json"):
        where = folder / "test_q.json"
        name = str(field_of(row, "question_id", where))
        if name in seen:
            raise ValueError(f"{where}: two questions of question_id {name}")
        seen.add(name)
        if name not in answers:
            raise ValueError(f"{folder / 'test_a.json'} has no answer of question_id {name}")
        options = _options(field_of(row, "options", where), name)
        if row.get("num_option", len(options)) != len(options):
            raise ValueError(
                f"{where}: question {name} has num_option {row['num_option']} and "
                f"{len(options)} options"
            )
        truth = field_of(answers[name], "answer_id", folder / "test_a.json")
        if not isinstance(truth, int):
            raise ValueError(f"question {name}: answer_id = {truth!r} must be a number from 0")
        questions.append(
            Question(
                index=len(questions),
                id=name,
                task=str(row.get("task") or folder.name),
                text=str(field_of(row, "question", where)),
                options=options,
                answer=truth,
                video=f"videos/{paths.find(str(field_of(row, 'video_name', where)))}",
                span=bounds_of(row),
            )
        )
    return questions


def bounds_of(row: Mapping[str, Any]) -> Span:
    """The part of the video that a row of test_q.json is about: `time`, `end_frame`.

    Raises:
      ValueError: they leave nothing of it.
    """
    start, end = row.get("time") or (None, None)
    frame = row.get("end_frame")
    return Span(_seconds(start), _seconds(end), None if frame is None or frame < 0 else frame)


class Videos:
    """Finds `<name>.*` in one folder, each name once.

    Args:
      folder: that the videos lie in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The file; `name` itself if there is a frame folder of that name, or nothing.

        Raises:
          ValueError: several files have that name.
        """
        if name not in self._found:
            self._found[name] = self._look(name)
        return self._found[name]

    def _look(self, name: str) -> str:
        # Data sets have names with [brackets], which are no patterns.
        matches = [
            path.relative_to(self._folder)
            for path in sorted(self._folder.glob(f"{glob.escape(name)}.*"))
            if path.suffix.lower() not in _NO_VIDEO
        ]
        # `a.*` also finds a.b.mp4, the file of another question.
        exact = [path for path in matches if path.with_suffix("").as_posix() == name]
        found = exact or matches
        if len(found) > 1:
            told = ", ".join(path.as_posix() for path in found)
            raise ValueError(f"{self._folder}: {name} is several files ({told}): keep one")
        return found[0].as_posix() if found else name


def _read_mvbench(folder: Path) -> list[Question]:
    questions: list[Question] = []
    for task, (name, clips, kind, bounded) in MVBENCH.items():
        path = _mvbench_json(folder) / name
        if not path.is_file():
            continue
        place = Path("video") / clips
        if kind == "frame" and (folder / place).is_dir():
            _require_rate(folder / place)
        for number, row in enumerate(read_rows(path)):
            label = f"{path.stem}/{number}"
            options = _options(field_of(row, "candidates", path), label)
            truth = field_of(row, "answer", path)
            if options.count(truth) != 1:
                raise ValueError(
                    f"question {label}: the answer {truth!r} stands {options.count(truth)} times "
                    "among the candidates"
                )
            span = Span()
            if bounded:
                span = Span(_seconds(row.get("start")), _seconds(row.get("end")))
            questions.append(
                Question(
                    index=len(questions),
                    id=label,
                    task=task,
                    text=str(field_of(row, "question", path)),
                    options=options,
                    answer=options.index(truth),
                    video=(place / str(field_of(row, "video", path))).as_posix(),
                    span=span,
                )
            )
    return questions


def _mvbench_json(folder: Path) -> Path:
    return folder / "json" if (folder / "json").is_dir() else folder


def _require_rate(folder: Path) -> None:
    if not (folder / RATE_FILE).is_file():
        raise ValueError(
            f"{folder} holds frames of {RATE} a second, which nothing in it says: write "
            f"{RATE} into {folder / RATE_FILE}"
        )


def read_rows(path: Path) -> list[Mapping[str, Any]]:
    """The objects of a JSON list; raises ValueError for anything else, OSError without the file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error})") from error
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise ValueError(f"{path} must hold a list of objects")
    return rows


def field_of(row: Mapping[str, Any], name: str, path: Path) -> Any:
    """A field of a row of a file; raises ValueError if it is not there."""
    if name not in row:
        raise ValueError(f"{path}: a row lacks {name}: {json.dumps(row)[:120]}")
    return row[name]


def _options(value: Any, name: str) -> tuple[str, ...]:
    if not (isinstance(value, list) and all(isinstance(text, str | int | float) for text in value)):
        raise ValueError(f"question {name}: the options {value!r} must be a list of texts")
    return tuple(map(str, value))


def _seconds(value: Any) -> float | None:
    """A bound; None without one, which TVQA writes as NaN."""
    if value is None:
        return None
    value = float(value)
    return None if math.isnan(value) else value
