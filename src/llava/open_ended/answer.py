"""`codecvit llava answer`: open questions of a benchmark, in chunks, to predictions for a judge."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...files import write_atomic
from ..mcq.merge import Incomplete, merge, read_results
from ..mcq.runner import BrokenModel
from ..mcq.verb import add_run_arguments, ask, list_videos, parse_run_arguments
from .predictions import PREDICTIONS, answer_figures, prediction_lines
from .questions import FORMATS, Plainly, missing_files, read_open


def main(argv: list[str]) -> int:
    """The verb: 0; 1 if the model or parts of the results are broken; 2 for what cannot work."""
    args = parse_run_arguments(_parser(), argv)
    try:
        if args.merge:
            return finish(Path(args.out))
        questions, form = read_open(args.benchmark, args.format)
        if args.list_videos is not None:
            return list_videos(args, questions)
        if form == "vcgbench" and missing_files(args.benchmark):
            told = ", ".join(missing_files(args.benchmark))
            print(f"not here, so not asked: {told}", file=sys.stderr)
        return ask(args, questions, form, Plainly(args.suffix), finish)
    except Incomplete as error:
        print(f"codecvit llava answer: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"codecvit llava answer: {error}", file=sys.stderr)
        return 2
    except BrokenModel as error:
        print(f"codecvit llava answer: {error}", file=sys.stderr)
        return 1


def finish(out: Path) -> int:
    """Merges the chunks of a run and writes its predictions.

    Raises:
      Incomplete: some questions have no line yet.
      ResultsError: results that do not fit together.
    """
    figures = merge(out, answer_figures)
    _, records = read_results(out)
    write_atomic(out / PREDICTIONS, b"".join(prediction_lines(records)))
    told = ", ".join(f"{name} {count}" for name, count in figures["statuses"].items())
    print(f"{figures['questions']} questions: {told}; without a word: {figures['empty']}")
    print(f"{out}: complete; next: codecvit llava judge {out} --judge openai:MODEL --out DIR")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit llava answer",
        description="Asks a model the open questions of a benchmark. Every question gets a line, "
        "failures too; run again, it goes on where it stopped, with any number of chunks. "
        "`codecvit llava judge` then rates the answers.",
        epilog="example: codecvit llava answer --model runs/stage2 --benchmark eval_data/MSVD "
        "--assets msvd --out results/msvd",
    )
    add_run_arguments(
        parser,
        "holds test_q.json, test_a.json, videos/; or the files of VCGBench or VCGBench-Diverse",
        FORMATS,
        max_new_tokens=512,
    )
    parser.add_argument(
        "--suffix", default="", metavar="TEXT", help="is added to every question (default: nothing)"
    )
    return parser
