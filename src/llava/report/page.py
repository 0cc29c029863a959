"""`codecvit llava report`: one page that shows what a model saw, was asked, and answered.

The page is one file without any outside resource, and nothing of a data set is ever read as HTML:
texts travel as JSON and reach the page by `textContent` alone.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import importlib.resources
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...codec.llava.span import Span
from ...files import write_atomic
from ..mcq.merge import read_results
from ..mcq.parse import STRATEGIES
from ..mcq.questions import Question
from ..mcq.records import Record
from ..mcq.score import compare, paired, score
from ..mcq.sources import VisualError
from .pictures import picture_of

PICTURES = 60
_FRAMES = {1: 12, 2: 8}  # shown of a video, by the number of runs
_TEMPLATE = "page.html"

Run = tuple[str, Mapping[str, Any], Sequence[Record]]
"""(name, run.json, records)."""


def build_page(runs: Sequence[Run], pictures: int = PICTURES, title: str | None = None) -> str:
    """The page of one run, or of two beside each other.

    Args:
      runs: one or two, over the same questions.
      pictures: most videos that are shown; the page says what it leaves out. Flips come first, then
        what went wrong.
      title: of the page.

    Returns:
      HTML.

    Raises:
      ValueError: not one or two runs, or runs over different questions.
    """
    if not 1 <= len(runs) <= 2:
        raise ValueError(f"{len(runs)} results: a report shows one run, or two beside each other")
    rows = _rows(runs)
    shown, strips = _pictures(runs, rows, pictures)
    figures = [score(records) for _, _, records in runs]
    data = {
        "benchmark": Path(runs[0][1]["benchmark"]["path"]).name,
        "runs": [
            _run(name, run, found) for (name, run, _), found in zip(runs, figures, strict=True)
        ],
        "compare": compare(runs[0][2], runs[1][2]) if len(runs) == 2 else None,
        "questions": [
            {**_question(row[0]), "answers": [_answer(r) for r in row], "pictures": shown[i]}
            for i, row in enumerate(rows)
        ],
        "pictures": strips,
    }
    return _fill(data, title or " and ".join(name for name, _, _ in runs))


def main(argv: list[str]) -> int:
    """The verb: 0, or 2 for results that cannot be shown."""
    args = _parser().parse_args(argv)
    try:
        runs = []
        for folder in args.results:
            run, records = read_results(Path(folder))
            if run.get("strategy") not in STRATEGIES:
                raise ValueError(f"{folder} holds no multiple-choice results: only these are shown")
            if args.benchmark is not None:
                run["benchmark"]["path"] = str(Path(args.benchmark).absolute())
            if args.assets is not None:
                run["visuals"]["assets"] = args.assets
            runs.append((Path(folder).resolve().name, run, records))
        page = build_page(runs, args.pictures, args.title).encode()
        write_atomic(args.out, page)
    except (ValueError, OSError) as error:
        print(f"codecvit llava report: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(runs[0][2])} questions, {len(page) / 1e6:.1f} MB")
    return 0


def _rows(runs: Sequence[Run]) -> list[tuple[Record, ...]]:
    """Records of each question, one per run."""
    if len(runs) == 1:
        return [(record,) for record in runs[0][2]]
    return list(paired(runs[0][2], runs[1][2]))


def _pictures(
    runs: Sequence[Run], rows: Sequence[tuple[Record, ...]], most: int
) -> tuple[list[list[int | str | None]], list[dict[str, Any]]]:
    """(of each question and run: number of its picture, why there is none, or None where it was
    left out; the pictures)."""
    shown: list[list[int | str | None]] = [[None] * len(runs) for _ in rows]
    numbers: dict[tuple[str, ...], int | str] = {}
    strips: list[dict[str, Any]] = []
    videos: set[str] = set()
    shown_frames = _FRAMES[len(runs)]
    for place in sorted(range(len(rows)), key=lambda i: (-_interest(rows[i]), i)):
        for k, (record, (_, run, _)) in enumerate(zip(rows[place], runs, strict=True)):
            if record["source"] == "none":
                shown[place][k] = record["error"]
                continue
            question = question_of(record)
            key = _picture_key(run, question, record["source"])
            if key not in numbers:
                if len(videos | {question.video}) > most:
                    continue
                videos.add(question.video)
                try:
                    strips.append(
                        picture_of(run, question, record["source"], shown_frames).to_json()
                    )
                    numbers[key] = len(strips) - 1
                except VisualError as error:
                    numbers[key] = str(error)
            shown[place][k] = numbers[key]
    return shown, strips


def _picture_key(run: Mapping[str, Any], question: Question, source: str) -> tuple[str, ...]:
    """Equal for equal pictures: runs that saw the same share them."""
    visuals = run["visuals"]
    made_with = visuals["frames_hash"] if source == "frames" else visuals["config_hash"]
    return (question.video, question.span.suffix, str(made_with), run["benchmark"]["path"])


def _interest(row: Sequence[Record]) -> int:
    if len({bool(record["correct"]) for record in row}) > 1:
        return 2
    return int(not row[0]["correct"])


def question_of(record: Record) -> Question:
    """The question of a record."""
    return Question(
        index=record["index"],
        id=record["id"],
        task=record["task"],
        text=record["question"],
        options=tuple(record["options"]),
        answer=record["answer"],
        video=record["video"],
        span=Span.of(record),
    )


def _run(name: str, run: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "model": str(run["model"].get("path", "")),
        "details": dict(_details(run)),
        "figures": figures,
    }


def _details(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    model, visuals = run["model"], run["visuals"]
    yield "model", str(model.get("path"))
    yield "fingerprint", str(model.get("fingerprint"))
    yield "template", f"{model.get('template')}, {model.get('dtype')}"
    yield "strategy", run["strategy"]
    yield "prompt", run["prompt"]
    yield "benchmark", f"{run['benchmark']['path']} ({run['benchmark']['format']})"
    yield "options of visuals", str(visuals["frames_hash"] or visuals["config_hash"])
    if rule := visuals.get("shared_frames"):
        yield "frames", f"{rule['count']} of {rule['size']} pixels, {rule['resize']}"
    yield "hash of the run", str(run["hash"])


def _question(record: Record) -> dict[str, Any]:
    return {
        "id": record["id"],
        "task": record["task"],
        "text": record["question"],
        "options": record["options"],
        "answer": record["answer"],
        "video": record["video"],
        "span": Span.of(record).suffix.lstrip("_"),
    }


def _answer(record: Record) -> dict[str, Any]:
    names = ("status", "prediction", "correct", "reply", "scores", "tie", "error", "source")
    return {
        **{name: record[name] for name in names},
        "prompt": record["prompt"],
        "tokens": [record["visual_tokens"], record["text_tokens"]],
        "fusion": record.get("fusion"),
    }


def _fill(data: Mapping[str, Any], title: str) -> str:
    """The template with its data; only the script of the template may run."""
    page = importlib.resources.files(__package__).joinpath(_TEMPLATE).read_text("utf-8")
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Inside a script element nothing is HTML but its end; escaped, that cannot occur.
    text = json.dumps(data, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    values = {"SCRIPT_HASH": digest, "TITLE": html.escape(title), "DATA": text}
    # In one pass: what a value holds is not looked at again.
    return re.sub(r"@(SCRIPT_HASH|TITLE|DATA)@", lambda found: values[found[1]], page)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit llava report",
        description="Shows results of `codecvit llava eval` on one page: frames with the patches "
        "that were read, question, options, reply, truth and verdict; filters by task, verdict and "
        "text. Two runs over one benchmark stand side by side, with what changed between them.",
        epilog="example: codecvit llava report results/codec results/frames --out page.html",
    )
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="one --out of eval, or two")
    parser.add_argument("--out", required=True, metavar="FILE", help="the page")
    parser.add_argument(
        "--pictures",
        type=int,
        default=PICTURES,
        metavar="N",
        help="most videos to show frames of, about 0.1 MB each; changed answers come first, then "
        "wrong ones (default: %(default)s)",
    )
    parser.add_argument("--title", help="of the page (default: names of the folders)")
    parser.add_argument(
        "--benchmark", metavar="DIR", help="where it is now, if it is not where it was"
    )
    parser.add_argument("--assets", metavar="DIR", help="likewise")
    return parser
