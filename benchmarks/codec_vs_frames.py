"""Codec patches beside uniform frames, random patches and frame differences, at equal tokens.

    python benchmarks/codec_vs_frames.py [--out codec_vs_frames] [--seeds 1 2 3]
    python benchmarks/codec_vs_frames.py --table ablation     # which part of the selection matters
    python benchmarks/codec_vs_frames.py --cells 2 --clips 48 24 --steps 20      # what CI runs

A cell is one encoder, pretrained on one way to fill a number of tokens and probed (k-NN and linear)
on test clips that were packed in the same way. The rows of a table differ in nothing but the
patches that the encoder reads: clips, cluster labels, model, steps, seeds are the same.

Steps are fixed per budget, so that a cell takes at most 90 s on two idle cores: columns of
different budgets saw different numbers of clips and say nothing about each other. Interrupted, it
goes on where it stopped. Ends with the table of docs/results.md and, in OUT, TABLE.json and
TABLE.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path

import demo_cells
import numpy as np

# Each takes about a minute on two idle cores.
STEPS = {128: 1200, 192: 900, 256: 650, 512: 300}
BATCH = 16
MODEL = {"width": 64, "depth": 2, "num_heads": 1, "mlp_dim": 256}


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to choose patches.

    Attributes:
      name: in tables.
      folder: of its records and runs.
      mode: of `codecvit pack`.
      settings: of the codec selection, as for `codecvit pack --set`.
    """

    name: str
    folder: str
    mode: str = "codec"
    settings: tuple[str, ...] = ()


CODEC = Row("codec (default)", "codec")
TABLES = {
    "selection": [
        CODEC,
        Row("uniform frames", "frames", "frames"),
        Row("random patches", "random", settings=("policy=random",)),
        Row("frame difference", "difference", settings=("signal=difference", "camera=none")),
    ],
    "ablation": [
        CODEC,
        Row("scale=sqrt", "sqrt", settings=("scale=sqrt",)),
        Row("scale=frame", "frame", settings=("scale=frame",)),
        Row("w_mv=0", "residual", settings=("w_mv=0",)),
        Row("w_mv=1", "even", settings=("w_mv=1",)),
        Row("w_res=0, w_mv=1", "motion", settings=("w_res=0", "w_mv=1")),
        Row("frame_cap=0.25", "cap", settings=("frame_cap=0.25",)),
        Row("camera=none", "no_camera", settings=("camera=none",)),
        Row("first_frame=ranked", "ranked", settings=("first_frame=ranked",)),
        Row("signal=bitstream", "bitstream", settings=("signal=bitstream",)),
    ],
}
BUDGETS = {"selection": [128, 192, 256, 512], "ablation": [192]}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("codec_vs_frames"))
    parser.add_argument("--table", choices=TABLES, default="selection")
    parser.add_argument("--budgets", type=int, nargs="+", choices=STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cells", type=int, help="run no more than so many")
    parser.add_argument("--clips", type=int, nargs=2, default=(800, 320), help="training, test")
    parser.add_argument("--steps", type=int, help="instead of those of the budget")
    args = parser.parse_args()
    args.budgets = args.budgets or BUDGETS[args.table]
    # Seed by seed: after a third of the time the table is whole, with one seed.
    cells = list(itertools.product(args.seeds, args.budgets, TABLES[args.table]))[: args.cells]
    seconds = [run_cell(args, *cell) for cell in cells]
    results = {cell: demo_cells.scores(workdir(args, *cell)) for cell in cells}
    as_json = [
        {"row": row.name, "tokens": budget, "seed": seed, "scores": found}
        for (seed, budget, row), found in results.items()
    ]
    (args.out / f"{args.table}.json").write_text(json.dumps(as_json, indent=1) + "\n")
    print(f"longest training of a cell: {max(seconds):.0f} s (of those that ran now)\n")
    print(table(args, results))
    plot(args, results)


def run_cell(args, seed, budget, row):
    """Packs, trains and probes one cell; the seconds of the run."""
    base = args.out / f"seed{seed}"
    name = f"{row.folder}-{budget}"
    packing = {"mode": row.mode, "settings": row.settings}
    records = demo_cells.make_records(base, seed, args.clips, name, budget, **packing)
    start = time.monotonic()
    demo_cells.train(
        records,
        workdir(args, seed, budget, row),
        mode=row.mode,
        steps=args.steps or STEPS[budget],
        seed=seed,
        sources__video__budget=budget,
        sources__video__batch_size=BATCH,
        **{f"model__{field}": value for field, value in MODEL.items()},
    )
    return time.monotonic() - start


def workdir(args, seed, budget, row):
    return args.out / f"seed{seed}" / "runs" / f"{row.folder}-{budget}"


def table(args, results):
    """Per score a table of means; below it what the first row is ahead of each other, in pairs."""
    lines = []
    for score in demo_cells.SCORES:
        budgets = " | ".join(f"{budget} tokens" for budget in args.budgets)
        lines += [f"| {score} | {budgets} |", "|---" * (1 + len(args.budgets)) + "|"]
        first, *others = TABLES[args.table]
        for row in (first, *others):
            columns = []
            for budget in args.budgets:
                trained = gather(results, row, budget, score, "trained")
                untrained = gather(results, row, budget, score, "untrained")
                columns.append(with_untrained(trained, untrained))
            lines.append(f"| {row.name} | {' | '.join(columns)} |")
        for row in others:
            columns = []
            for budget in args.budgets:
                ours = gather(results, first, budget, score, "trained")
                theirs = gather(results, row, budget, score, "trained")
                ahead = [ours[seed] - theirs[seed] for seed in theirs if seed in ours]
                columns.append(demo_cells.spread(ahead, signed=True) if ahead else "")
            lines.append(f"| *{first.name} minus {row.name}* | {' | '.join(columns)} |")
        lines.append("")
    return "\n".join(lines)


def with_untrained(trained, untrained):
    if not trained:
        return ""
    return f"{demo_cells.spread([*trained.values()])} ({np.mean([*untrained.values()]):.0%})"


def gather(results, row, budget, score, kind):
    """Accuracy by seed."""
    return {
        seed: found[score][kind]
        for (seed, cell_budget, cell_row), found in results.items()
        if (cell_budget, cell_row) == (budget, row)
    }


def plot(args, results):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(demo_cells.SCORES)
    figure, axes = pyplot.subplots(1, len(names), figsize=(4 * len(names), 3.6))
    draw = draw_rows if len(args.budgets) == 1 else draw_budgets
    for axis, score in zip(axes, names, strict=True):
        axis.set_title(score)
        draw(axis, args, results, score)
    if draw is draw_budgets:
        axes[0].set_ylabel("accuracy (lines: mean; dots: seeds)")
        axes[-1].legend(fontsize=7)
    else:
        for axis in axes[1:]:
            axis.tick_params(labelleft=False)
    figure.tight_layout()
    figure.savefig(args.out / f"{args.table}.png", dpi=110)


def draw_budgets(axis, args, results, score):
    """Accuracy against tokens, a line for each row of the table."""
    for row in TABLES[args.table]:
        points = [
            (budget, value)
            for budget in args.budgets
            for value in gather(results, row, budget, score, "trained").values()
        ]
        if not points:
            continue
        budgets = sorted({budget for budget, _ in points})
        means = [np.mean([v for b, v in points if b == budget]) for budget in budgets]
        (line,) = axis.plot(budgets, means, "o:", label=row.name)
        axis.plot(*zip(*points, strict=True), ".", color=line.get_color(), alpha=0.4)
    axis.set(xlabel="tokens (steps differ, see STEPS)", xscale="log")
    axis.set_xticks(args.budgets, [str(budget) for budget in args.budgets])
    axis.minorticks_off()


def draw_rows(axis, args, results, score):
    """Accuracy at the one budget, the rows below each other."""
    rows = TABLES[args.table]
    for place, row in enumerate(rows):
        values = [*gather(results, row, args.budgets[0], score, "trained").values()]
        axis.plot(values, [place] * len(values), ".", color="tab:blue", alpha=0.4)
        if values:
            axis.plot(np.mean(values), place, "o", color="tab:blue")
    axis.set_yticks(range(len(rows)), [row.name for row in rows])
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel(f"accuracy at {args.budgets[0]} tokens (small: seeds)")


if __name__ == "__main__":
    main()
