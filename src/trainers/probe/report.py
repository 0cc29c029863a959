"""Several attentive probes side by side: a table and a plot of accuracy against tokens.

    codecvit probe-report RUN_DIR... --out DIR

writes DIR/report.json and DIR/report.html. Runs of one data set, encoder and input (other seeds)
are averaged. Intervals are 95 % bootstrap intervals over the test examples; where the same encoder
saw codec patches and frames at the same number of tokens, their difference has one too, of pairs:
both are drawn on the same examples.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...evaluators.outcomes import Outcomes, bootstrap, measure
from ...files import PathOrUrl, exists, join, read_bytes, read_text, write_json
from ..plot import html_page, svg_text
from .results import OUTCOMES, RESULTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAME_TOKENS = 0.05
"""Two inputs have one budget if their longest sequences differ by no more than this share."""

_NOTE = (
    "Intervals: 95 % bootstrap over the test examples. They tell nothing of other seeds of "
    "pretraining or probe."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """The runs of one encoder with one input on one data set.

    Attributes:
      results: of each run, what its results.json says.
      keys: of the test examples, alike in all runs.
      outcomes: of each run.
    """

    results: list[dict[str, Any]]
    keys: np.ndarray
    outcomes: list[Outcomes]

    @property
    def tokens(self) -> int:
        """Tokens of the longest example, over all views."""
        return self.results[0]["tokens"] * self.results[0]["views"]

    def value(self, draw: np.ndarray | None = None) -> float:
        """The data set's metric in 0..1, mean of the runs; `draw` takes some examples."""
        rows = slice(None) if draw is None else draw
        drawn = [{key: values[rows] for key, values in run.items()} for run in self.outcomes]
        return float(np.mean([next(iter(measure(run).values())) for run in drawn]))


def read_cells(runs: Sequence[PathOrUrl]) -> list[Cell]:
    """The cells of some work directories, by data set, encoder, mode and tokens.

    Raises:
      ValueError: a run has no result, or runs of one data set tested other examples.
    """
    found: dict[tuple[str, str, str], list[tuple[dict[str, Any], np.ndarray, Outcomes]]] = {}
    keys_of: dict[str, np.ndarray] = {}
    for run in runs:
        if not exists(join(run, RESULTS)):
            raise ValueError(f"{run} has no {RESULTS}: it is no finished run of `codecvit probe`")
        results = json.loads(read_text(join(run, RESULTS)))
        with np.load(io.BytesIO(read_bytes(join(run, OUTCOMES))), allow_pickle=False) as arrays:
            outcomes = {key: arrays[key] for key in arrays.files}
        keys = outcomes.pop("keys")
        if not np.array_equal(keys_of.setdefault(results["dataset"], keys), keys):
            raise ValueError(
                f"{run} tested other examples of {results['dataset']} than the runs before it: "
                "report those alone that have one test.jsonl"
            )
        name = (results["dataset"], results["encoder"], results["input"])
        found.setdefault(name, []).append((results, keys, outcomes))
    cells = []
    for rows in found.values():
        results, keys, outcomes = zip(*rows, strict=True)
        cells.append(Cell(list(results), keys[0], list(outcomes)))

    def order(cell: Cell) -> tuple[Any, ...]:
        first = cell.results[0]
        return first["dataset"], first["encoder"], first["mode"], cell.tokens

    return sorted(cells, key=order)


def summarise(cells: Sequence[Cell]) -> dict[str, list[dict[str, Any]]]:
    """What report.json says: `cells` and `differences`, codec minus frames."""
    return {
        "cells": [_describe(cell) for cell in cells],
        "differences": [_compare(codec, frames) for codec, frames in find_pairs(cells)],
    }


def find_pairs(cells: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """(codec, frames) of one data set, encoder and token budget."""
    pairs = []
    for a, b in itertools.product(cells, cells):
        first, second = a.results[0], b.results[0]
        same = all(first[key] == second[key] for key in ("dataset", "encoder"))
        modes = (first["mode"], second["mode"]) == ("codec", "frames")
        if same and modes and abs(a.tokens - b.tokens) <= SAME_TOKENS * max(a.tokens, b.tokens):
            pairs.append((a, b))
    return pairs


def draw_report(rows: Sequence[dict[str, Any]]) -> Figure:
    """One panel per data set, accuracy against tokens; a colour per encoder, a line per mode."""
    # Imported here: the figure's own class draws without a window system.
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    datasets = sorted({row["dataset"] for row in rows})
    encoders = sorted({row["encoder"] for row in rows})
    modes = sorted({row["mode"] for row in rows})
    columns = min(3, len(datasets))
    lines = -(-len(datasets) // columns)
    figure = Figure(figsize=(max(5.5, 4.2 * columns), 3.4 * lines + 0.8), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, dataset in zip(panels, datasets, strict=False):
        here = [row for row in rows if row["dataset"] == dataset]
        for row_group in itertools.product(enumerate(encoders), enumerate(modes)):
            (colour, encoder), (style, mode) = row_group
            line = [r for r in here if (r["encoder"], r["mode"]) == (encoder, mode)]
            if not line:
                continue
            value = 100 * np.array([[r["value"], r["low"], r["high"]] for r in line])
            panel.errorbar(
                # A little apart, where the budgets are the same.
                [r["tokens"] * 1.03 ** (style - (len(modes) - 1) / 2) for r in line],
                value[:, 0],
                yerr=np.abs(value[:, 1:].T - value[:, 0]),
                fmt=("o-", "s--", "^:", "v-.")[style % 4],
                color=f"C{colour}",
                capsize=3,
                markersize=4,
                label=f"{encoder}, {mode}",
            )
        ticks = sorted({r["tokens"] for r in here})
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("tokens of an example", fontsize=8)
        panel.set_ylabel(f"{here[0]['metric'].replace('_', ' ')}, %", fontsize=8)
        panel.set_title(dataset, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    for panel in panels[len(datasets) :]:
        panel.set_axis_off()
    named = {}
    for panel in panels:
        named |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=2, fontsize=8)
    return figure


def main(argv: list[str]) -> int:
    """The verb `probe-report`."""
    parser = argparse.ArgumentParser(
        prog="codecvit probe-report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, default=Path("probe_report"), help="folder")
    args = parser.parse_args(argv)
    try:
        found = summarise(read_cells(args.runs))
    except ValueError as error:
        print(f"codecvit probe-report: {error}", file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "report.json", found)
    tables = {"Attentive probe": _cell_rows(found["cells"])}
    if found["differences"]:
        heading = "Codec minus frames, at one number of tokens"
        tables[heading] = _difference_rows(found["differences"])
    if any(cell["baselines"] for cell in found["cells"]):
        tables["Baselines on the same features, top-1"] = _baseline_rows(found["cells"])
    picture = svg_text(draw_report(found["cells"]))
    page = html_page("CodecViT probes", picture, tables, _NOTE)
    (args.out / "report.html").write_text(page, encoding="utf-8")
    for heading, rows in tables.items():
        print(heading)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
    print(f"{_NOTE}\n{args.out / 'report.html'}")
    return 0


def _describe(cell: Cell) -> dict[str, Any]:
    first = cell.results[0]
    low, high = bootstrap(cell.value, len(cell.keys))
    same = ("dataset", "encoder", "input", "mode", "metric", "views")
    same += ("test_examples", "test_missing", "test_unreadable")
    described = {key: first[key] for key in same} | {
        "tokens": cell.tokens,
        "value": cell.value(),
        "low": low,
        "high": high,
        "seeds": [run["seed"] for run in cell.results],
        "lr": [run["lr"] for run in cell.results],
        "epoch": [run["epoch"] for run in cell.results],
    }
    if "top5" in first["test"]:
        described["top5"] = float(np.mean([run["test"]["top5"] for run in cell.results]))
    names = set.intersection(*(set(run.get("baselines", {})) for run in cell.results))
    described["baselines"] = {
        name: float(np.mean([run["baselines"][name] for run in cell.results]))
        for name in sorted(names)
    }
    return described


def _compare(codec: Cell, frames: Cell) -> dict[str, Any]:
    low, high = bootstrap(lambda draw: codec.value(draw) - frames.value(draw), len(codec.keys))
    first = codec.results[0]
    return {
        "dataset": first["dataset"],
        "encoder": first["encoder"],
        "codec": first["input"],
        "frames": frames.results[0]["input"],
        "tokens": codec.tokens,
        "difference": codec.value() - frames.value(),
        "low": low,
        "high": high,
    }


def _cell_rows(cells: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["data set", "encoder", "input", "tokens", "metric", "value", "95 %", "top5"]]
    rows[0] += ["runs", "examples", "missing", "unreadable"]
    for cell in cells:
        rows.append(
            [cell["dataset"], cell["encoder"], cell["input"], f"{cell['tokens']:,}"]
            + [cell["metric"].replace("_", " "), _percent(cell["value"])]
            + [f"{_percent(cell['low'])} to {_percent(cell['high'])}"]
            + [_percent(cell["top5"]) if "top5" in cell else ""]
            + [str(len(cell["seeds"])), f"{cell['test_examples']:,}"]
            + [str(cell["test_missing"]), str(cell["test_unreadable"])]
        )
    return rows


def _baseline_rows(cells: Sequence[dict[str, Any]]) -> list[list[str]]:
    names = sorted({name for cell in cells for name in cell["baselines"]})
    titles = [name.removesuffix("_top1").replace("_", ", ") for name in names]
    rows = [["data set", "encoder", "input", *titles]]
    for cell in cells:
        found = cell["baselines"]
        numbers = [_percent(found[name]) if name in found else "" for name in names]
        rows.append([cell["dataset"], cell["encoder"], cell["input"], *numbers])
    return rows


def _difference_rows(differences: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["data set", "encoder", "codec", "frames", "tokens", "points", "95 %"]]
    for found in differences:
        rows.append(
            [found[key] for key in ("dataset", "encoder", "codec", "frames")]
            + [f"{found['tokens']:,}", f"{100 * found['difference']:+.1f}"]
            + [f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}"]
        )
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
