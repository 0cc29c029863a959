"""Probe accuracy against compute: model sizes, and low -> high resolution against high only.

    python benchmarks/ladder.py [--out ladder] [--sizes Ti S B] [--seeds 1 2 3]

On the made clips of benchmarks/codec_vs_frames.py. Every size is pretrained twice: on clips of 112
pixels (128 tokens) all the time, and on clips of 56 pixels (32 tokens) for half of the compute and
of 112 pixels for the other half, encoder and head carried over (config.init). Both spend the same
FLOPs by the count of trainers/flops.py, which leaves the optimiser out: Muon's share grows with the
width and with the number of steps. Interrupted, it goes on where it stopped. Ends with a table
and, in OUT, ladder.json and ladder.png. Ti with 4 blocks takes minutes a run on a CPU; a ladder up
to B wants a GPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import demo_cells
import numpy as np

from codecvit.models.config import SIZES, ViTConfig
from codecvit.trainers.flops import train_flops_per_token

BATCH = 16
HIGH = {"size": 112, "budget": 128}
LOW = {"size": 56, "budget": 32}
ROUTES = ("high", "low to high")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("ladder"))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["Ti", "S", "B"])
    parser.add_argument("--depth", type=int, default=4, help="blocks, of every size")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=600, help="of the high route")
    parser.add_argument("--clips", type=int, nargs=2, default=(800, 320), help="training, test")
    args = parser.parse_args()
    found = []
    for seed in args.seeds:
        records = {
            view["size"]: demo_cells.make_records(
                args.out / f"seed{seed}",
                seed,
                args.clips,
                f"codec-{view['size']}",
                view["budget"],
                size=view["size"],
            )
            for view in (LOW, HIGH)
        }
        for size in args.sizes:
            for route in ROUTES:
                found.append(run_route(args, seed, size, route, records))
    (args.out / "ladder.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(args, found))
    plot(args, found)


def run_route(args, seed, size, route, records):
    """Pretrains one size on one route; its compute and scores."""
    config = ViTConfig.from_variant(f"{size}/14", depth=args.depth)
    flops = {v["size"]: step_flops(config, v["budget"]) for v in (LOW, HIGH)}
    folder = args.out / f"seed{seed}" / "runs" / f"{size}-{route.replace(' ', '-')}"
    common = {
        "seed": seed,
        "model__variant": f"{size}/14",
        "model__depth": args.depth,
        "sources__video__batch_size": BATCH,
    }
    high_steps, low_steps, init = args.steps, 0, {}
    if route == "low to high":
        high_steps = args.steps // 2
        low_steps = round((args.steps - high_steps) * flops[112] / flops[56])
        low = {**common, "steps": low_steps, "sources__video__budget": LOW["budget"]}
        demo_cells.train(records[56], folder / "low", **low)
        init = {"init__checkpoint": folder / "low", "init__parts": "('heads/main',)"}
    high = {**common, "steps": high_steps, "sources__video__budget": HIGH["budget"], **init}
    demo_cells.train(records[112], folder / "high", **high)
    return {
        "seed": seed,
        "size": size,
        "route": route,
        "tflops": (low_steps * flops[56] + high_steps * flops[112]) / 1e12,
        "steps": [low_steps, high_steps],
        "scores": demo_cells.scores(folder / "high"),
    }


def step_flops(config, budget):
    return BATCH * budget * train_flops_per_token(config, budget)


def table(args, found):
    lines = [
        f"| size, {args.depth} blocks | route | TFLOP | " + " | ".join(demo_cells.SCORES) + " |"
    ]
    lines.append("|---" * (3 + len(demo_cells.SCORES)) + "|")
    for size in args.sizes:
        by_route = {
            route: [one for one in found if (one["size"], one["route"]) == (size, route)]
            for route in ROUTES
        }
        for route, cells in by_route.items():
            columns = [demo_cells.spread(trained(cells, score)) for score in demo_cells.SCORES]
            lines.append(f"| {size} | {route} | {cells[0]['tflops']:.1f} | {' | '.join(columns)} |")
        # Seed by seed: both routes of a seed have the same clips and clusters.
        columns = []
        for score in demo_cells.SCORES:
            high, low_to_high = (trained(by_route[route], score) for route in ROUTES)
            columns.append(demo_cells.spread(np.subtract(low_to_high, high), signed=True))
        lines.append(f"| {size} | *low to high minus high* | | {' | '.join(columns)} |")
    return "\n".join(lines)


def trained(cells, score):
    """A score of several cells after training."""
    return [cell["scores"][score]["trained"] for cell in cells]


def plot(args, found):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(demo_cells.SCORES)
    figure, axes = pyplot.subplots(1, len(names), figsize=(4 * len(names), 3.6))
    for axis, score in zip(axes, names, strict=True):
        for route in ROUTES:
            points = [
                (one["tflops"], one["scores"][score]["trained"])
                for one in found
                if one["route"] == route
            ]
            compute = sorted({x for x, _ in points})
            means = [np.mean([y for x, y in points if x == at]) for at in compute]
            (line,) = axis.plot(compute, means, marker="o", label=route)
            axis.plot(*zip(*points, strict=True), ".", color=line.get_color(), alpha=0.4)
        axis.set(title=score, xlabel="training compute, TFLOP", xscale="log")
    axes[0].set_ylabel("accuracy (lines: mean; dots: seeds)")
    axes[-1].legend()
    figure.tight_layout()
    figure.savefig(args.out / "ladder.png", dpi=110)


if __name__ == "__main__":
    main()
