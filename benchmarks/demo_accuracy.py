"""Probe accuracy of the demo's encoder over seeds, codec selection beside uniform frames.

    bash scripts/demo.sh                       # makes the records that this reads
    python benchmarks/demo_accuracy.py [--demo demo_out] [--seeds 3] [--steps 600]

Every run is the shipped config src/configs/demo.py with another seed (initialisation, order of the
data); data, records and cluster labels are those of the demo. Interrupted, it goes on where it
stopped. Prints the table of docs/benchmarks.md: mean of the runs and two standard errors of it,
beside the descriptor as a whole and its part `shape`, which the labels come from.

The demo's settings were chosen by their results on its own clips. Clips that had no say:

    for S in 1 2 3; do python scripts/demo.py --seed $S --out demo_$S; done
    python benchmarks/demo_accuracy.py --demo demo_1 demo_2 demo_3 --seeds 1 --modes codec
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from codecvit.cluster.features import descriptors
from codecvit.data.records import RecordSet
from codecvit.metrics import read_metrics
from codecvit.trainers.probe.records import evaluate

MODES = ("codec", "frames")
COLUMNS = ("motion", "digit")
SCORES = (("knn_top1", "k-NN"), ("linear_top1", "linear"))
DESCRIPTORS = {"descriptor": None, "descriptor's part `shape`": "shape"}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, nargs="+", default=[Path("demo_out")])
    parser.add_argument("--seeds", type=int, default=3, help="runs on each data set")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    args = parser.parse_args()
    for mode in args.modes:
        for demo, seed, workdir in runs(args, mode):
            train(demo, mode, args.steps, seed, workdir)
    print(table(args))


def runs(args, mode):
    return [
        (demo, seed, demo / "accuracy" / f"{mode}-{seed}")
        for demo in args.demo
        for seed in range(args.seeds)
    ]


def train(demo, mode, steps, seed, workdir):
    settings = f"data={demo / 'records'},mode={mode},steps={steps},seed={seed}"
    config = f"--config=src/configs/demo.py:{settings}"
    command = [sys.executable, "-m", "codecvit", "train", config, f"--workdir={workdir}"]
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def table(args):
    untrained = {
        name: [probe_descriptor(demo / "records", part) for demo in args.demo]
        for name, part in DESCRIPTORS.items()
    }
    lines = [
        "| labels | probe | input | chance | untrained | trained |",
        "|---|---|---|---|---|---|",
    ]
    for column in COLUMNS:
        for key, probe in SCORES:
            for mode in args.modes:
                first, last, chance = [], [], 0.0
                for _, _, workdir in runs(args, mode):
                    name = f"probe/{column}/"
                    rows = [row for row in read_metrics(workdir) if name + key in row]
                    first.append(rows[0][name + key])
                    last.append(rows[-1][name + key])
                    chance = rows[0][name + "chance"]
                numbers = f"{chance:.1%} | {spread(first)} | {spread(last)}"
                lines.append(f"| {column} | {probe} | {mode} | {numbers} |")
            for name, scores in untrained.items():
                numbers = f"{scores[0][column]['chance']:.1%} | | "
                numbers += spread([score[column][key] for score in scores])
                lines.append(f"| {column} | {probe} | {name}, no training | {numbers} |")
    return "\n".join(lines)


def probe_descriptor(records, part):
    """Scores by label column; both modes hold the same descriptors."""
    sets = [RecordSet(records / split / "codec") for split in ("train", "test")]
    features = [descriptors(record_set, part) for record_set in sets]
    return {column: evaluate(sets, features, column) for column in COLUMNS}


def spread(values):
    if len(values) == 1:
        return f"{values[0]:.1%}"
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.1%} ± {2 * error:.1%}"


if __name__ == "__main__":
    main()
