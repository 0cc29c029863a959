"""`codecvit llava curves`: accuracy against tokens, codec patches beside whole frames.

A budget is a number of mosaics. The codec fills them with the patches that it selects of all
sampled frames; the other curve fills each with one whole frame, evenly sampled: as many patches of
the same size, for the same model, with the same questions. All of that is written down before the
first question, and a folder that holds another plan is refused.

    OUT/plan/run.json            what was decided before the run
    OUT/codec-8, OUT/frames-8    one evaluation each, as `codecvit llava eval` leaves it
    OUT/curves.json, curves.png  what came out
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...codec.llava.options import MosaicOptions, add_mosaic_arguments, mosaic_options
from ...evaluators.intervals import bootstrap
from ...files import write_atomic
from ...sequence import NUM_SLOTS
from .accuracy_plot import draw_accuracy, point
from .look import Look, look_of
from .merge import merge, read_results
from .parse import Strategy, strategy_named
from .questions import FORMATS, Question, read_questions
from .records import Record, claim
from .runner import Answerer, BrokenModel, describe_run, run_chunk
from .score import compare, paired
from .sources import Sources
from .verb import add_model_arguments, add_strategy_argument, load_answerer

INPUTS = {"codec": "pack", "frames": "frames"}
"""What fills the mosaics, and the `on_miss` of `Sources` that does it."""

PLAN = "plan"
CURVES = "curves.json"
PICTURE = "curves.png"


def main(argv: list[str]) -> int:
    """The verb: 0; 1 if the model is broken; 2 for what cannot work."""
    args = _parser().parse_args(argv)
    try:
        questions, form = read_questions(args.benchmark, args.format)
        strategy = strategy_named(args.strategy)
        for question in questions:
            strategy.prompt(question)  # too many options: said before a model is loaded
        options = mosaic_options(args)
        for budget in args.budgets:
            at_budget(options, budget)  # likewise
        look = look_of(args.model)
        if not look.patches:
            raise ValueError(f"{args.model} reads frames alone: there are no codec patches to show")
        answerer, expected, patch = load_answerer(args)
        check_trained(options, expected)
        out, budgets = Path(args.out), sorted(set(args.budgets))
        benchmark = {"path": str(Path(args.benchmark).absolute()), "format": form}
        cells = plan(questions, benchmark, answerer, strategy, options, patch, budgets, out, look)
        for cell in cells:
            folder, batch = out / cell.name, args.batch_size
            done = run_chunk(
                questions, cell.source, answerer, strategy, folder, cell.run, batch_size=batch
            )
            merge(folder)
            print(f"{cell.name}: {done} answered now", file=sys.stderr)
        found = read_curves(out, budgets)
        write_atomic(out / CURVES, (json.dumps(found, indent=1) + "\n").encode())
        lines = {"codec patches": found["codec"], "whole frames": found["frames"]}
        draw_accuracy(lines, "tokens", found["chance"]).savefig(out / PICTURE, dpi=120)
    except (ValueError, OSError) as error:
        print(f"codecvit llava curves: {error}", file=sys.stderr)
        return 2
    except BrokenModel as error:
        print(f"codecvit llava curves: {error}", file=sys.stderr)
        return 1
    print(table(found))
    print(f"{out / CURVES}, {out / PICTURE}")
    return 0


def at_budget(options: MosaicOptions, budget: int) -> MosaicOptions:
    """The options with `budget` mosaics.

    Raises:
      ValueError: a budget below 1, or above what frames can fill.
    """
    if not 1 <= budget <= NUM_SLOTS:
        raise ValueError(f"--budgets {budget}: must be 1 to {NUM_SLOTS} mosaics")
    return dataclasses.replace(options, num_images=budget)


def check_trained(options: MosaicOptions, expected: str | None) -> None:
    """Checks that the model knows such mosaics: as it was trained on, but for their number.

    Args:
      options: of this run, with any number of mosaics.
      expected: hash of the options in training; None if the model states none.

    Raises:
      ValueError: they differ in more than the number.
    """
    numbers = range(1, NUM_SLOTS + 1)
    if expected and expected not in {at_budget(options, n).hash for n in numbers}:
        raise ValueError(
            f"the model was trained on mosaics of other options ({expected}) than any number of "
            "these: give --num-frames, --size, --patch and the selection as in training"
        )


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of a curve: its name, where its visuals come from, what its run.json states."""

    name: str
    source: Sources
    run: dict[str, Any]


def plan(
    questions: Sequence[Question],
    benchmark: Mapping[str, str],
    answerer: Answerer,
    strategy: Strategy,
    options: MosaicOptions,
    patch: int | None,
    budgets: Sequence[int],
    out: Path,
    look: Look | None = None,
) -> list[Cell]:
    """Decides what will be run, and writes it down.

    Args:
      questions: of the benchmark.
      benchmark: its `path` and `format`.
      answerer: the model.
      strategy: how it is asked.
      options: of mosaics; their number is that of each budget.
      patch: side of the encoder's patch.
      budgets: numbers of mosaics.
      out: folder of results.
      look: what the model reads; None: patches alone.

    Raises:
      ResultsError: the folder holds another plan.
    """
    cells, told = [], {}
    for budget in budgets:
        for name, on_miss in INPUTS.items():
            packed, place = at_budget(options, budget), benchmark["path"]
            source = Sources(place, None, packed, on_miss, patch, look=look)
            source.plan(questions)
            run = describe_run(questions, dict(benchmark), source, answerer, strategy)
            cells.append(Cell(f"{name}-{budget}", source, run))
            packing = source.packing(name == "frames").describe()
            told[f"{name}-{budget}"] = {**run, "packing": packing}
    claim(out / PLAN, told)
    return cells


def read_curves(out: Path, budgets: Sequence[int]) -> dict[str, Any]:
    """The figures of all cells.

    Args:
      out: folder of results.
      budgets: numbers of mosaics.

    Returns:
      As JSON: `chance`; per input a list over budgets of `budget` and what `point` tells;
      `difference`, codec minus frames, with `low` and `high` (bootstrap over videos, of which
      several questions may be asked) and McNemar's `p`.
    """
    found: dict[str, Any] = {name: [] for name in INPUTS}
    found["difference"] = []
    for budget in budgets:
        records = {name: read_results(out / f"{name}-{budget}")[1] for name in INPUTS}
        for name, rows in records.items():
            found[name].append({"budget": budget, **point(rows)})
        found["difference"].append({"budget": budget, **_difference(**records)})
    found["chance"] = found["codec"][0]["chance"]
    return found


def _difference(codec: Sequence[Record], frames: Sequence[Record]) -> dict[str, float]:
    videos: dict[str, list[int]] = {}
    for one, other in paired(codec, frames):
        videos.setdefault(one["video"], []).append(bool(one["correct"]) - bool(other["correct"]))
    gains = np.array([[sum(gained), len(gained)] for gained in videos.values()])

    def mean(draw: np.ndarray) -> float:
        gained, asked = gains[draw].sum(axis=0)
        return float(gained / asked)

    low, high = bootstrap(mean, len(gains))
    p = compare(frames, codec)["p"]
    return {"difference": mean(np.arange(len(gains))), "low": low, "high": high, "p": p}


def table(found: Mapping[str, Any]) -> str:
    """The figures as lines of text."""
    lines = [f"{'':10}  mosaics  visual + text tokens  accuracy  95 % interval"]
    for name in INPUTS:
        for row in found[name]:
            counts = f"{row['visual_tokens']:.0f} + {row['text_tokens']:.0f}"
            lines.append(
                f"{name:10}  {row['budget']:7}  {counts:>20}  {row['accuracy']:8.3f}  "
                f"{row['low']:.3f} to {row['high']:.3f}"
            )
    for row in found["difference"]:
        lines.append(
            f"{'difference':10}  {row['budget']:7}  {'':20}  {row['difference']:+8.3f}  "
            f"{row['low']:+.3f} to {row['high']:+.3f}  p = {row['p']:.3g}"
        )
    lines.append(f"chance {found['chance']:.3f}; text tokens hold the question and all times")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit llava curves",
        description="Accuracy of a model on multiple-choice questions against the tokens that it "
        "reads, with codec patches and with whole frames. Everything is decided, and written "
        "down, before the first question; run again, it goes on where it stopped.",
        epilog="example: codecvit llava curves --model runs/stage2 --benchmark eval_data/NExT-QA "
        "--budgets 1 2 4 8 --out results/nextqa-curves",
    )
    parser.add_argument(
        "--model", metavar="DIR", required=True, help="what `codecvit llava train` saved"
    )
    parser.add_argument(
        "--benchmark", metavar="DIR", required=True, help="as for `codecvit llava eval`"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="of the benchmark (default: recognised by its files)"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="results")
    parser.add_argument(
        "--budgets",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8],
        metavar="N",
        help="mosaics of a video, each as many patches as a frame (default: 1 2 4 8)",
    )
    add_strategy_argument(parser)
    add_model_arguments(parser, max_new_tokens=64)
    add_mosaic_arguments(parser, num_images=False)
    return parser
