"""`codecvit llava pool-sweep`: accuracy of models that pool differently, against visual tokens.

Reads what `codecvit llava eval` left of each; scripts/llava/pool_sweep.sh trains and asks them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files import write_atomic
from .accuracy_plot import draw_accuracy, point
from .merge import read_results
from .score import compare

FIGURES = "pool_sweep.json"
PICTURE = "pool_sweep.png"


def main(argv: list[str]) -> int:
    """The verb: 0, or 2 for results that cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="codecvit llava pool-sweep",
        description="Puts evaluations of models with different pool levels into one table and one "
        "picture.",
        epilog="example: codecvit llava pool-sweep 1=sweep/level-1/results 2=sweep/level-2/results "
        "--out sweep",
    )
    parser.add_argument("results", nargs="+", metavar="LEVEL=DIR", help="of `codecvit llava eval`")
    parser.add_argument("--out", required=True, metavar="DIR", help=f"for {FIGURES}, {PICTURE}")
    args = parser.parse_args(argv)
    try:
        found = read_levels(dict(map(_level, args.results)))
        out = Path(args.out)
        write_atomic(out / FIGURES, (json.dumps(found, indent=1) + "\n").encode())
        points = found["levels"]
        names = [f"p = {at['level']}" for at in points]
        picture = draw_accuracy({"pool levels": points}, "visual_tokens", found["chance"], names)
        picture.savefig(out / PICTURE, dpi=120)
    except (ValueError, OSError) as error:
        print(f"codecvit llava pool-sweep: {error}", file=sys.stderr)
        return 2
    print(table(found))
    print(f"{out / FIGURES}, {out / PICTURE}")
    return 0


def read_levels(folders: Mapping[int, Path]) -> dict[str, Any]:
    """The figures of all levels.

    Args:
      folders: of results, by pool level.

    Returns:
      As JSON: `chance`, `questions`, and `levels`, most tokens first: `level`, what `point` tells,
      and `p`, McNemar's against the first of them.

    Raises:
      ValueError: results are not complete, or not over the same questions.
    """
    records = {level: read_results(folder)[1] for level, folder in sorted(folders.items())}
    first = next(iter(records.values()))
    levels = [
        {"level": level, **point(rows), "p": compare(first, rows)["p"]}
        for level, rows in records.items()
    ]
    return {"chance": levels[0]["chance"], "questions": len(first), "levels": levels}


def table(found: Mapping[str, Any]) -> str:
    """The figures as lines of text."""
    lines = ["level  visual tokens  accuracy  95 % interval   p against the first"]
    for at in found["levels"]:
        lines.append(
            f"{at['level']:5}  {at['visual_tokens']:13.1f}  {at['accuracy']:8.3f}  "
            f"{at['low']:.3f} to {at['high']:.3f}  {at['p']:.3g}"
        )
    lines.append(f"{found['questions']} questions; chance {found['chance']:.3f}")
    return "\n".join(lines)


def _level(text: str) -> tuple[int, Path]:
    level, _, folder = text.partition("=")
    if not (level.isdecimal() and int(level) and folder):
        raise ValueError(f"{text!r} must be LEVEL=DIR, such as 2=sweep/level-2/results")
    return int(level), Path(folder)
