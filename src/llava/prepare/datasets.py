"""The benchmarks that `codecvit llava prepare` knows, in one table, and how their rows are read."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...codec.llava.rows import RowError, iter_rows
from ...files import read_text
from ..mcq.mvbench import MVBENCH
from ..mcq.questions import field_of, read_rows
from ..open_ended.questions import DIVERSE, VCGBENCH

# Video-ChatGPT's and VideoGPT+'s files, and MVBench's, are what the runners read: they are copied.
Find = Callable[[str], Path]
"""(name of an annotation file) -> where it lies; raises ValueError if it does not."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One question.

    Attributes:
      id: unique within the data set.
      task: what results are grouped by.
      video: name of its video, without ending.
      question: its text.
      answer: the right answer; of multiple choice, its number among `options`.
      options: of multiple choice.
      time: (start, end) in seconds of the part that is meant.
      files: names that the video may have on disk; `video` if there are none.
    """

    id: str
    task: str
    video: str
    question: str
    answer: str | int
    options: tuple[str, ...] = ()
    time: tuple[float, float] | None = None
    files: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """How a benchmark is handed out.

    Attributes:
      title: its name.
      source: where it comes from.
      splits: split -> its annotation files; the first is the default.
      read: (finder, split's files) -> rows; None where the runners read the files themselves.
      rate: frames a second, where videos are folders of images.
    """

    title: str
    source: str
    splits: Mapping[str, tuple[str, ...]]
    read: Callable[[Find, tuple[str, ...]], Iterator[Row]] | None
    rate: float | None = None


def _msvd(find: Find, files: tuple[str, ...]) -> Iterator[Row]:
    """Videos are numbered in the questions, and named after YouTube on disk."""
    path = find("youtube_mapping.txt")
    names = {}
    for line in read_text(path).splitlines():
        if words := line.split():
            if len(words) != 2:
                raise ValueError(f"{path}: {line!r} is no line of a name and a number")
            names[words[1]] = words[0]
    for row in _qa(find, files, "msvd", "vid{}"):
        if row.video not in names:
            raise ValueError(f"{path} has no {row.video}, which question {row.id} is about")
        yield dataclasses.replace(row, video=names[row.video])


def _msrvtt(find: Find, files: tuple[str, ...]) -> Iterator[Row]:
    return _qa(find, files, "msrvtt", "video{}")


def _qa(find: Find, files: tuple[str, ...], task: str, video: str) -> Iterator[Row]:
    path = find(files[0])
    for row in read_rows(path):
        yield Row(
            id=str(field_of(row, "id", path)),
            task=task,
            video=video.format(field_of(row, "video_id", path)),
            question=str(field_of(row, "question", path)),
            answer=str(field_of(row, "answer", path)),
        )


def _tgif(find: Find, files: tuple[str, ...]) -> Iterator[Row]:
    kinds = {"0": "object", "1": "number", "2": "color", "3": "location"}
    path = find(files[0])
    for number, row in enumerate(_table(path, "\t")):
        yield Row(
            id=str(number),
            task=kinds.get(str(row.get("type")), "frameqa"),
            video=field_of(row, "gif_name", path),
            question=field_of(row, "question", path),
            answer=field_of(row, "answer", path),
        )


def _activitynet(find: Find, files: tuple[str, ...]) -> Iterator[Row]:
    kinds = ("motion", "spatial relation", "temporal relation", "yes or no", "color", "object")
    kinds += ("location", "number", "other")
    asked, path = find(files[0]), find(files[1])
    answers = {str(field_of(row, "question_id", path)): row for row in read_rows(path)}
    for row in read_rows(asked):
        name = str(field_of(row, "question_id", asked))
        if name not in answers:
            raise ValueError(f"{path} has no answer of question_id {name}")
        kind = answers[name].get("type")
        known = isinstance(kind, int) and 0 <= kind < len(kinds)
        video = str(field_of(row, "video_name", asked))
        yield Row(
            id=name,
            task=kinds[kind] if known else "activitynet",
            video=video,
            question=str(field_of(row, "question", asked)),
            answer=str(field_of(answers[name], "answer", path)),
            files=(f"v_{video}", video),
        )


def _perception_test(find: Find, files: tuple[str, ...]) -> Iterator[Row]:
    path = find(files[0])
    for row in _objects(path):
        for question in row["mc_question"]:
            yield Row(
                id=f"{row['video']}_{field_of(question, 'id', path)}",
                task=str(question.get("area") or "perception_test"),
                video=row["video"],
                question=str(field_of(question, "question", path)),
                answer=_number(field_of(question, "answer_id", path), path),
                options=_texts(field_of(question, "options", path), path),
            )


def _nextqa(find: Find, files: tuple[str, ...]) -> Iterator[Row]:
    path = find(files[0])
    for row in _table(path, ","):
        video = field_of(row, "video", path)
        yield Row(
            id=f"{video}_{field_of(row, 'qid', path)}",
            task=str(row.get("type") or "nextqa"),
            video=video,
            question=field_of(row, "question", path),
            answer=_number(field_of(row, "answer", path), path),
            options=tuple(field_of(row, f"a{k}", path) for k in range(5)),
        )


def _vlep(find: Find, files: tuple[str, ...]) -> Iterator[Row]:
    path = find(files[0])
    for row in _lines(path):
        start, end = field_of(row, "ts", path)
        yield Row(
            id=str(field_of(row, "example_id", path)),
            task="vlep",
            video=str(field_of(row, "vid_name", path)),
            question="Which of these is more likely to happen next?",
            answer=_number(field_of(row, "answer", path), path),
            options=_texts(field_of(row, "events", path), path),
            time=(float(start), float(end)),
        )


def _tvqa(find: Find, files: tuple[str, ...]) -> Iterator[Row]:
    path = find(files[0])
    for row in _lines(path):
        yield Row(
            id=str(field_of(row, "qid", path)),
            task=str(row.get("show_name") or "tvqa"),
            video=str(field_of(row, "vid_name", path)),
            question=str(field_of(row, "q", path)),
            answer=_number(field_of(row, "answer_idx", path), path),
            options=tuple(str(field_of(row, f"a{k}", path)) for k in range(5)),
            time=_bounds(str(field_of(row, "ts", path)), path),
        )


DATASETS = {
    "msvd": Dataset(
        "MSVD-QA",
        "github.com/xudejing/video-question-answering",
        {"test": ("test_qa.json",), "val": ("val_qa.json",)},
        _msvd,
    ),
    "msrvtt": Dataset(
        "MSRVTT-QA",
        "github.com/xudejing/video-question-answering",
        {"test": ("test_qa.json",), "val": ("val_qa.json",)},
        _msrvtt,
    ),
    "tgif": Dataset(
        "TGIF-QA, FrameQA",
        "github.com/YunseokJANG/tgif-qa",
        {"test": ("Test_frameqa_question.csv",)},
        _tgif,
    ),
    "activitynet": Dataset(
        "ActivityNet-QA",
        "github.com/MILVLG/activitynet-qa",
        {"test": ("test_q.json", "test_a.json"), "val": ("val_q.json", "val_a.json")},
        _activitynet,
    ),
    "vcgbench": Dataset(
        "VCGBench",
        "mbzuai-oryx.github.io/Video-ChatGPT",
        {"test": tuple(name for name, _ in VCGBENCH.values())},
        None,
    ),
    "vcgbench_diverse": Dataset(
        "VCGBench-Diverse",
        "huggingface.co/datasets/MBZUAI/VCGBench-Diverse",
        {"test": (DIVERSE,)},
        None,
    ),
    "perception_test": Dataset(
        "Perception Test, multiple choice",
        "github.com/google-deepmind/perception_test",
        {"valid": ("mc_question_valid.json",), "train": ("mc_question_train.json",)},
        _perception_test,
    ),
    "nextqa": Dataset(
        "NExT-QA, multiple choice",
        "github.com/doc-doc/NExT-QA",
        {"test": ("test.csv",), "val": ("val.csv",)},
        _nextqa,
    ),
    "vlep": Dataset(
        "VLEP",
        "github.com/jayleicn/VideoLanguageFuturePred",
        {"dev": ("vlep_dev_release.jsonl",), "train": ("vlep_train_release.jsonl",)},
        _vlep,
        rate=3.0,
    ),
    "tvqa": Dataset(
        "TVQA",
        "tvqa.cs.unc.edu",
        {"val": ("tvqa_val.jsonl",), "train": ("tvqa_train.jsonl",)},
        _tvqa,
        rate=3.0,
    ),
    "mvbench": Dataset(
        "MVBench",
        "huggingface.co/datasets/OpenGVLab/MVBench",
        {"test": tuple(task.json for task in MVBENCH.values())},
        None,
        rate=3.0,
    ),
}


def _table(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    yield from csv.DictReader(
        io.StringIO(read_text(path), newline=""),
        delimiter=delimiter,
        # A quotation mark in a tab-separated question is one.
        quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL,
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, row in iter_rows(path):
        if isinstance(row, RowError):
            raise ValueError(f"{path}, line {number + 1}: {row}")
        yield row


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """Of a file {video: {mc_question: [...]}}."""
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold an object with a field per video")
    for video, row in value.items():
        questions = row.get("mc_question") if isinstance(row, dict) else None
        if not (isinstance(questions, list) and all(isinstance(q, dict) for q in questions)):
            raise ValueError(f"{path}: {video} has no list mc_question")
        yield {"video": video, "mc_question": questions}


def _number(value: Any, path: Path) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: the answer {value!r} is no number: of this split the answers are not public, "
            "or this is the open-ended form"
        ) from error


def _texts(value: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{path}: the options {value!r} must be a list")
    return tuple(map(str, value))


def _bounds(text: str, path: Path) -> tuple[float, float] | None:
    """Of "1.21-8.49"; None for "nan-nan"."""
    first, _, second = text.partition("-")
    try:
        start, end = float(first), float(second)
    except ValueError as error:
        raise ValueError(f"{path}: ts = {text!r} must be two numbers of seconds") from error
    return None if math.isnan(start) or math.isnan(end) else (start, end)
