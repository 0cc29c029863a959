"""`codecvit llava eval`: multiple-choice questions of a benchmark, in chunks, to one table."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ...codec.llava.options import add_mosaic_arguments, mosaic_options
from ...codec.llava.rows import json_line
from ...files import write_atomic
from ...jobs import Shard
from ..progress import tell
from .look import look_of
from .merge import Incomplete, merge
from .mvbench import missing_tasks
from .parse import STRATEGIES, Strategy, strategy_named
from .questions import FORMATS, Question, read_questions
from .runner import Answerer, BrokenModel, describe_run, run_chunk
from .score import table
from .sources import ON_MISS, Sources, video_rows


def main(argv: list[str]) -> int:
    """The verb: 0; 1 if the model or parts of the results are broken; 2 for what cannot work."""
    args = parse_run_arguments(_parser(), argv)
    try:
        if args.merge:
            return _merge(Path(args.out))
        if args.list_videos is not None:
            return _list_videos(args)
        return _evaluate(args)
    except (ValueError, OSError) as error:
        print(f"codecvit llava eval: {error}", file=sys.stderr)
        return 2
    except BrokenModel as error:
        print(f"codecvit llava eval: {error}", file=sys.stderr)
        return 1


def parse_run_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parses, and stops where what the work needs is not given."""
    args = parser.parse_args(argv)
    needed = ["out"] if args.merge else ["benchmark"]
    if not args.merge and args.list_videos is None:
        needed += ["model", "out"]
    for name in needed:
        if getattr(args, name) is None:
            parser.error(f"--{name} is needed")
    return args


def _evaluate(args: argparse.Namespace) -> int:
    strategy = strategy_named(args.strategy)
    questions, form = read_questions(args.benchmark, args.format)
    if form == "mvbench" and missing_tasks(questions):
        print(f"not here, so not evaluated: {', '.join(missing_tasks(questions))}", file=sys.stderr)
    return ask(args, questions, form, strategy, _merge)


def ask(
    args: argparse.Namespace,
    questions: Sequence[Question],
    form: str,
    strategy: Strategy,
    finish: Callable[[Path], int],
) -> int:
    """Asks the questions of one chunk.

    Args:
      args: of `add_run_arguments`.
      questions: all of the benchmark.
      form: its format.
      strategy: how they are asked.
      finish: called with the folder of results; raises Incomplete while other chunks lack.

    Returns:
      What `finish` does; 0 if chunks lack.

    Raises:
      ValueError, OSError: something that cannot work.
      BrokenModel: the model fails at everything.
    """
    out = Path(args.out)
    part = Shard.parse(args.chunk)
    for question in questions:
        strategy.prompt(question)  # too many options: said before a model is loaded
    options = mosaic_options(args)
    look = look_of(args.model)
    sources = Sources(args.benchmark, args.assets, options, args.on_miss, look=look)
    sources.plan(questions)  # misses: likewise
    answerer, expected, patch = load_answerer(args)
    sources = Sources(args.benchmark, args.assets, options, args.on_miss, patch, look=look)
    plan = sources.plan(questions, expected)
    told = ", ".join(f"{name} {count}" for name, count in plan.counts.items())
    known = "which the model expects" if expected else "the model states none"
    print(f"{args.benchmark}: {len(questions)} questions ({form}); videos: {told}; ", end="")
    print(f"options {plan.config_hash}, {known}")
    benchmark = {"path": str(Path(args.benchmark).absolute()), "format": form}
    run = describe_run(questions, benchmark, sources, answerer, strategy)
    written = run_chunk(
        questions,
        sources,
        answerer,
        strategy,
        out,
        run,
        (part.index, part.count),
        args.batch_size,
        args.retry_failures,
        functools.partial(tell, "questions {}/{}"),
    )
    print(f"chunk {args.chunk}: {written} answered now")
    try:
        return finish(out)
    except Incomplete as error:
        print(error)
        return 0


def load_answerer(args: argparse.Namespace) -> tuple[Answerer, str | None, int | None]:
    """(the model, hash of the options that it was trained with if it says, side of its patches)."""
    from .answer import ModelAnswerer

    answerer = ModelAnswerer.load(
        args.model, device=args.device, dtype=args.dtype, max_new_tokens=args.max_new_tokens
    )
    return answerer, answerer.expected_hash, answerer.patch


def _merge(out: Path) -> int:
    summary = merge(out)
    print(table(summary))
    print(f"{out}: complete; `codecvit llava report {out} --out page.html` shows the answers")
    return 0


def _list_videos(args: argparse.Namespace) -> int:
    return list_videos(args, read_questions(args.benchmark, args.format)[0])


def list_videos(args: argparse.Namespace, questions: Sequence[Question]) -> int:
    """Writes `--list-videos` of the questions' videos."""
    rows = video_rows(questions, args.benchmark)
    write_atomic(args.list_videos, b"".join(map(json_line, rows)))
    print(
        f"{args.list_videos}: {len(rows)} videos; next: codecvit llava assets --jsonl "
        f"{args.list_videos} --root {args.benchmark} --out DIR"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit llava eval",
        description="Asks a model the multiple-choice questions of a benchmark. Every question "
        "gets a line, failures too; run again, it goes on where it stopped, with any number of "
        "chunks.",
        epilog="example: codecvit llava eval --model runs/stage2 --benchmark eval_data/NExT-QA "
        "--assets nextqa --out results/nextqa",
    )
    add_run_arguments(
        parser,
        "holds test_q.json, test_a.json, videos/ (MERV) or json/, video/ (MVBench)",
        FORMATS,
        max_new_tokens=64,
    )
    add_strategy_argument(parser)
    return parser


def add_strategy_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --strategy."""
    parser.add_argument(
        "--strategy",
        choices=tuple(STRATEGIES),
        default="letter",
        help="letter: strict reading of the reply; loglik: the likeliest letter; first_char, "
        "mvbench_compat: as MERV and VideoGPT+ count (default: %(default)s)",
    )


def add_run_arguments(
    parser: argparse.ArgumentParser, holds: str, formats: Sequence[str], max_new_tokens: int
) -> None:
    """Adds what `ask` and `list_videos` read.

    Args:
      parser: of a verb that asks a model questions about videos.
      holds: what there is in the folder of a benchmark.
      formats: of benchmarks.
      max_new_tokens: of a reply, by default.
    """
    parser.add_argument("--model", metavar="DIR", help="what `codecvit llava train` saved")
    parser.add_argument("--benchmark", metavar="DIR", help=holds)
    parser.add_argument(
        "--format", choices=formats, help="of the benchmark (default: recognised by its files)"
    )
    parser.add_argument("--out", metavar="DIR", help="results")
    parser.add_argument(
        "--chunk", default="0/1", metavar="k/n", help="chunk k of n, counted from 0: array jobs"
    )
    parser.add_argument(
        "--merge", action="store_true", help="only put the chunks together; refuses holes"
    )
    parser.add_argument(
        "--retry-failures", action="store_true", help="ask again what failed in earlier runs"
    )
    parser.add_argument(
        "--list-videos",
        metavar="FILE",
        help="only write the benchmark's videos and their bounds, for `codecvit llava assets`",
    )
    group = parser.add_argument_group("what the model sees")
    group.add_argument("--assets", metavar="DIR", help="--out of `codecvit llava assets`")
    group.add_argument(
        "--on-miss",
        choices=ON_MISS,
        default="error",
        help="without assets of a video: stop before the first question; pack it now, by the "
        "options below; or show whole frames (default: %(default)s)",
    )
    add_model_arguments(parser, max_new_tokens)
    add_mosaic_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """Adds what `load_answerer` reads beside --model, and --batch-size.

    Args:
      parser: of a verb that asks a model.
      max_new_tokens: of a reply, by default.
    """
    group = parser.add_argument_group("model")
    group.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="bfloat16",
        help="default: %(default)s",
    )
    group.add_argument("--batch-size", type=int, default=1, help="default: %(default)s")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        help="of a reply (default: %(default)s)",
    )
