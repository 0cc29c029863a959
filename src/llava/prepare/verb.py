"""`codecvit llava prepare`: a benchmark as its authors hand it out -> a folder the runners read."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...codec.image_folder import RATE_FILE
from ...files import write_atomic
from ..mcq.questions import Question, read_questions
from ..open_ended.questions import OpenQuestion, read_open
from .datasets import DATASETS, Dataset, Row
from .find import find_annotation, find_videos

MISSING = "missing.txt"
_SHOWN = 5


def main(argv: list[str]) -> int:
    """The verb: 0, or 2 for what cannot be prepared."""
    args = _parser().parse_args(argv)
    try:
        dataset = DATASETS[args.name]
        split = args.split or next(iter(dataset.splits))
        if split not in dataset.splits:
            raise ValueError(f"split = {split!r} must be one of {', '.join(dataset.splits)}")
        root, out = Path(args.root), Path(args.out)
        videos = Path(args.videos) if args.videos else root
        for folder in (root, videos):
            if not folder.is_dir():
                raise ValueError(f"{folder} is no folder")
        if any(out.resolve().is_relative_to(folder.resolve()) for folder in (root, videos)):
            raise ValueError(f"--out {out} must lie outside {root} and {videos}")
        out.mkdir(parents=True, exist_ok=True)
        _unlink(out)
        return _prepare(args.name, dataset, dataset.splits[split], root, videos, out)
    except (ValueError, OSError) as error:
        print(f"codecvit llava prepare: {error}", file=sys.stderr)
        return 2


def _prepare(
    name: str, dataset: Dataset, files: tuple[str, ...], root: Path, videos: Path, out: Path
) -> int:
    if dataset.read is not None:
        rows = list(dataset.read(lambda file: find_annotation(root, file), files))
        if not rows:
            raise ValueError(f"{root}: {files[0]} holds no questions")
        _write(out, rows)
        names = {row.video: row.files or (row.video,) for row in rows}
        found = _found(videos, names)
        links = {f"videos/{video}{_ending(path)}": path for video, path in found.items()}
    else:
        _copy(root, out, files, name == "mvbench")
        questions = _questions(out, name)
        links = _as_named(videos, questions, name)
    _link(out, links, dataset.rate)
    questions = _questions(out, name)  # reads as the runners will
    missing = [question for question in questions if not (out / question.video).exists()]
    return _report(dataset, out, questions, missing, videos)


def _report(
    dataset: Dataset,
    out: Path,
    questions: Sequence[Question | OpenQuestion],
    missing: Sequence[Question | OpenQuestion],
    videos: Path,
) -> int:
    lost = sorted({question.video for question in missing})
    total = len({question.video for question in questions})
    if len(lost) == total:
        raise ValueError(
            f"none of the {total} videos lies below {videos}, such as {lost[0]}: --videos says "
            "where they are"
        )
    (out / MISSING).unlink(missing_ok=True)
    print(f"{dataset.title}: {len(questions)} questions about {total} videos in {out}")
    if lost:
        write_atomic(out / MISSING, "".join(f"{video}\n" for video in lost).encode())
        told = ", ".join(lost[:_SHOWN]) + (", ..." if len(lost) > _SHOWN else "")
        print(
            f"missing: {len(lost)} videos of {len(missing)} questions ({told}), all in "
            f"{out / MISSING}; the questions stay, and count as wrong"
        )
    verb = "answer" if isinstance(questions[0], OpenQuestion) else "eval"
    print(f"next: codecvit llava {verb} --benchmark {out} --list-videos videos.jsonl")
    return 0


def _questions(out: Path, name: str) -> Sequence[Question | OpenQuestion]:
    if name == "mvbench" or (out / "test_q.json").is_file() and _has_options(out):
        return read_questions(out)[0]
    return read_open(out)[0]


def _has_options(out: Path) -> bool:
    rows = json.loads((out / "test_q.json").read_text(encoding="utf-8"))
    return "options" in rows[0]


def _write(out: Path, rows: Iterable[Row]) -> None:
    """test_q.json and test_a.json."""
    asked: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for row in rows:
        question: dict[str, Any] = {
            "question_id": row.id,
            "video_name": row.video,
            "question": row.question,
            "task": row.task,
        }
        answer: dict[str, Any] = {"question_id": row.id, "answer": row.answer}
        if row.options:
            assert isinstance(row.answer, int)
            question.update(options=list(row.options), num_option=len(row.options))
            if not 0 <= row.answer < len(row.options):
                raise ValueError(
                    f"question {row.id}: the answer has number {row.answer} among "
                    f"{len(row.options)} options"
                )
            answer.update(answer=row.options[row.answer], answer_id=row.answer)
        if row.time is not None:
            question["time"] = list(row.time)
        asked.append(question)
        answers.append(answer)
    for name, value in (("test_q.json", asked), ("test_a.json", answers)):
        write_atomic(out / name, (json.dumps(value, indent=1) + "\n").encode())


def _copy(root: Path, out: Path, files: Iterable[str], mvbench: bool) -> None:
    """Annotations that the runners read as they are; those that are not there are told later."""
    folder = out / "json" if mvbench else out
    folder.mkdir(exist_ok=True)
    copied = 0
    reasons = []
    for name in files:
        try:
            path = find_annotation(root, name)
        except ValueError as error:
            reasons.append(str(error))
            continue
        shutil.copyfile(path, folder / name)
        copied += 1
    if not copied:
        raise ValueError(reasons[0])
    for reason in reasons:
        print(f"left out: {reason}", file=sys.stderr)


def _as_named(
    videos: Path, questions: Sequence[Question | OpenQuestion], name: str
) -> dict[str, Path]:
    """Links for videos that keep their names."""
    if name == "mvbench":
        # Tasks have folders of their own, in which names repeat.
        paths = {question.video for question in questions}
        return {video: videos / video for video in paths if (videos / video).exists()}
    found = find_videos(videos, {Path(question.video).name for question in questions})
    links = {}
    for video, path in found.items():
        ending = "" if video == path.name else _ending(path)
        links[f"videos/{video}{ending}"] = path
    return links


def _found(root: Path, names: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """The file of each video, by the first of its names that there is."""
    files = find_videos(root, {file for files in names.values() for file in files})
    found = {}
    for video, candidates in names.items():
        path = next((files[file] for file in candidates if file in files), None)
        if path is not None:
            found[video] = path
    return found


def _ending(path: Path) -> str:
    return "" if path.is_dir() else path.suffix


def _link(out: Path, links: Mapping[str, Path], rate: float | None) -> None:
    rates: dict[Path, str] = {}
    for name, path in links.items():
        place = out / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            raise ValueError(f"{place} is no link that this verb made: choose another --out")
        place.symlink_to(path.resolve())
        if path.is_dir():
            stated = _stated_rate(path) or (f"{rate:g}" if rate else None)
            if stated is None:
                raise ValueError(
                    f"{path} is a folder of images: write its frames a second into {RATE_FILE}"
                )
            if rates.setdefault(place.parent, stated) != stated:
                raise ValueError(
                    f"{path} has {stated} frames a second, others in its place "
                    f"{rates[place.parent]}: they cannot lie in one folder"
                )
    for folder, stated in rates.items():
        write_atomic(folder / RATE_FILE, f"{stated}\n".encode())


def _unlink(out: Path) -> None:
    """Removes the links of an earlier run: the videos may have moved."""
    for folder in (out / "videos", out / "video"):
        for path in folder.rglob("*"):
            if path.is_symlink():
                path.unlink()


def _stated_rate(folder: Path) -> str | None:
    for place in (folder, folder.absolute().parent):
        if (place / RATE_FILE).is_file():
            return (place / RATE_FILE).read_text(encoding="utf-8").strip()
    return None


def _parser() -> argparse.ArgumentParser:
    known = "\n".join(
        f"  {name:17} {d.title}; splits {', '.join(d.splits)}; {d.source}"
        for name, d in DATASETS.items()
    )
    parser = argparse.ArgumentParser(
        prog="codecvit llava prepare",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Turns a benchmark, as its authors hand it out, into a folder for `codecvit "
        "llava eval` or\n`codecvit llava answer`: question files, and links to the videos. Nothing "
        "is downloaded or changed\nthere; what is missing is listed.\n\ndata sets:\n" + known,
        epilog="example: codecvit llava prepare nextqa --root downloads/NExT-QA --out "
        "eval_data/NExT-QA",
    )
    parser.add_argument("name", choices=tuple(DATASETS), metavar="NAME", help="of the list above")
    parser.add_argument(
        "--root", required=True, metavar="DIR", help="annotations and videos, at any depth"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder for the runner")
    parser.add_argument("--videos", metavar="DIR", help="where the videos are, if not below --root")
    parser.add_argument("--split", help="default: the first of the data set")
    return parser
