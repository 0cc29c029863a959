"""Open questions about videos, as the field publishes them.

qa: MSVD-QA, MSRVTT-QA, TGIF-QA and ActivityNet-QA in the layout of MERV and Video-LLaVA:
  `test_q.json`, `test_a.json`, `videos/`.
vcgbench: Video-ChatGPT's benchmark (Maaz et al. 2023, arXiv 2306.05424), three files.
vcgbench_diverse: VideoGPT+'s (Maaz et al. 2024, arXiv 2406.09418), one file with a type per row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...codec.llava.span import Span
from ..mcq.parse import Parsed, plain
from ..mcq.questions import Videos, bounds_of, field_of, read_rows

FORMATS = ("qa", "vcgbench", "vcgbench_diverse")
VCGBENCH = {
    "generic": ("generic_qa.json", ("CI", "DO", "CU")),
    "temporal": ("temporal_qa.json", ("TU",)),
    "consistency": ("consistency_qa.json", ("CO",)),
}
DIVERSE = "vcgbench_diverse_qa.json"
DIVERSE_TYPES = {
    "summary": ("CI", "DO", "CU"),
    "spatial": ("CI", "DO", "CU"),
    "reasoning": ("CI", "DO", "CU"),
    "temporal": ("TU",),
    "consistency": ("CO",),
}
QA = ("qa",)


@dataclasses.dataclass(frozen=True)
class OpenQuestion:
    """One question that is answered in words.

    Attributes:
      index: place in the benchmark, from 0.
      id: as the benchmark calls it; the two questions of a consistency item share it.
      task: what results are grouped by.
      text: the question.
      reference: the right answer; no model sees it.
      aspects: what a judge rates, see `prompts.ASPECTS`.
      video: path below the benchmark's folder, whether or not it exists.
      part: 1, or 2 for the second question of a consistency item.
      span: the part of the video that is meant.
    """

    index: int
    id: str
    task: str
    text: str
    reference: str
    aspects: tuple[str, ...]
    video: str
    part: int = 1
    span: Span = dataclasses.field(default_factory=Span)

    letters = ""
    """An open question offers none."""

    @property
    def row(self) -> dict[str, Any]:
        """What `codecvit.codec.llava.key_of` and `llava assets` take: the video and its span."""
        return {"video": self.video, **self.span.row()}

    def blank(self) -> dict[str, Any]:
        """The fields of a record that only questions of this kind have."""
        return {"reference": self.reference, "aspects": list(self.aspects), "part": self.part}


@dataclasses.dataclass(frozen=True)
class Plainly:
    """Asks the question as it stands, as MERV and VideoGPT+ do; a `mcq.parse.Strategy`.

    Attributes:
      suffix: is added to each question.
    """

    suffix: str = ""
    name: str = "open"

    @property
    def template(self) -> str:
        """What results state of the prompt."""
        return "{question}" + self.suffix

    def prompt(self, question: OpenQuestion) -> str:
        """What the model is asked, without the video's placeholder."""
        return plain(question.text) + self.suffix

    def read(self, reply: str, question: OpenQuestion) -> Parsed | None:
        """Nothing: a judge will."""
        return None


def read_open(folder: str | Path, form: str | None = None) -> tuple[list[OpenQuestion], str]:
    """Reads a benchmark.

    Args:
      folder: of its files.
      form: one of FORMATS; None recognises it.

    Returns:
      (questions in the order of the files, the format).

    Raises:
      ValueError: none of the formats, or a row that cannot be asked.
      OSError: a file cannot be read.
    """
    folder = Path(folder)
    form = _recognise(folder) if form is None else form
    if form not in FORMATS:
        raise ValueError(f"format = {form!r} must be one of {', '.join(FORMATS)}")
    read = {"qa": _read_qa, "vcgbench": _read_vcgbench, "vcgbench_diverse": _read_diverse}[form]
    questions = [
        dataclasses.replace(question, index=index) for index, question in enumerate(read(folder))
    ]
    if not questions:
        raise ValueError(f"{folder} holds no questions")
    seen = set()
    for question in questions:
        name = (question.id, question.part)
        if name in seen:
            raise ValueError(f"{folder}: two questions have the id {question.id}")
        seen.add(name)
    return questions, form


def missing_files(folder: str | Path) -> list[str]:
    """Files of VCGBench that are not there: the aspects they are for will lack."""
    return [name for name, _ in VCGBENCH.values() if not (Path(folder) / name).is_file()]


def _recognise(folder: Path) -> str:
    if (folder / "test_q.json").is_file():
        return "qa"
    if (folder / DIVERSE).is_file():
        return "vcgbench_diverse"
    if len(missing_files(folder)) < len(VCGBENCH):
        return "vcgbench"
    raise ValueError(
        f"{folder} holds none of test_q.json (MSVD, MSRVTT, TGIF, ActivityNet), {DIVERSE}, "
        f"{', '.join(name for name, _ in VCGBENCH.values())} (VCGBench)"
    )


def _read_qa(folder: Path) -> Iterator[OpenQuestion]:
    path = folder / "test_a.json"
    answers: dict[str, Any] = {}
    for row in read_rows(path):
        name = str(field_of(row, "question_id", path))
        if name in answers:
            raise ValueError(f"{path}: two answers of question_id {name}")
        answers[name] = field_of(row, "answer", path)
    videos = Videos(folder / "videos")
    where = folder / "test_q.json"
    for row in read_rows(where):
        name = str(field_of(row, "question_id", where))
        if row.get("options") is not None:
            raise ValueError(
                f"{where}: question {name} has options: `codecvit llava eval` asks multiple choice"
            )
        if name not in answers:
            raise ValueError(f"{path} has no answer of question_id {name}")
        yield OpenQuestion(
            index=0,
            id=name,
            task=str(row.get("task") or folder.name),
            text=str(field_of(row, "question", where)),
            reference=str(answers[name]),
            aspects=QA,
            video=f"videos/{videos.find(str(field_of(row, 'video_name', where)))}",
            span=bounds_of(row),
        )


def _read_vcgbench(folder: Path) -> Iterator[OpenQuestion]:
    videos = Videos(folder / "videos")
    for task, (name, aspects) in VCGBENCH.items():
        path = folder / name
        if not path.is_file():
            continue
        for number, row in enumerate(read_rows(path)):
            video = videos.find(str(field_of(row, "video_name", path)))
            yield from _asked(row, path, f"{task}/{number}", task, aspects, f"videos/{video}")


def _read_diverse(folder: Path) -> Iterator[OpenQuestion]:
    path = folder / DIVERSE
    for row in read_rows(path):
        name = str(field_of(row, "id", path))
        task = field_of(row, "type", path)
        if task not in DIVERSE_TYPES:
            raise ValueError(
                f"{path}: row {name} has type {task!r}, which must be one of "
                f"{', '.join(DIVERSE_TYPES)}"
            )
        video = f"videos/{field_of(row, 'video_name', path)}"
        yield from _asked(row, path, name, task, DIVERSE_TYPES[task], video)


def _asked(
    row: Mapping[str, Any], path: Path, name: str, task: str, aspects: tuple[str, ...], video: str
) -> Iterator[OpenQuestion]:
    """One question; two where it is whether their answers agree."""
    for part, field in enumerate(("Q1", "Q2") if task == "consistency" else ("Q",), start=1):
        yield OpenQuestion(
            index=0,
            id=name,
            task=task,
            text=str(field_of(row, field, path)),
            reference=str(field_of(row, "A", path)),
            aspects=aspects,
            video=video,
            part=part,
        )
