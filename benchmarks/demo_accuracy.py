"""Probe accuracy of the demo's encoder over seeds, codec selection beside uniform frames.

    bash scripts/demo.sh                       # makes the records that this reads
    python benchmarks/demo_accuracy.py [--demo demo_out] [--seeds 3] [--steps 600]

Every run is the shipped config src/configs/demo.py with another seed (initialisation, order of the
data); data, records and cluster labels are those of the demo. Interrupted, it goes on where it
stopped. Prints the table of docs/benchmarks.md: mean of the seeds and two standard errors of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from codecvit.trainers.metrics import read_metrics

MODES = ("codec", "frames")
COLUMNS = ("motion", "digit")
SCORES = (("knn_top1", "k-NN"), ("linear_top1", "linear"))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=Path("demo_out"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    out = args.demo / "accuracy"
    for mode in MODES:
        for seed in range(args.seeds):
            train(args, mode, seed, out / f"{mode}-{seed}")
    print(table(args, out))


def train(args, mode, seed, workdir):
    settings = f"data={args.demo / 'records'},mode={mode},steps={args.steps},seed={seed}"
    config = f"--config=src/configs/demo.py:{settings}"
    command = [sys.executable, "-m", "codecvit", "train", config, f"--workdir={workdir}"]
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def table(args, out):
    descriptor = json.loads((args.demo / "descriptor.json").read_text())
    lines = [
        "| labels | probe | input | chance | untrained | trained |",
        "|---|---|---|---|---|---|",
    ]
    for column in COLUMNS:
        for key, probe in SCORES:
            for mode in MODES:
                first, last, chance = [], [], 0.0
                for seed in range(args.seeds):
                    name = f"probe/{column}/"
                    rows = read_metrics(out / f"{mode}-{seed}")
                    rows = [row for row in rows if name + key in row]
                    first.append(rows[0][name + key])
                    last.append(rows[-1][name + key])
                    chance = rows[0][name + "chance"]
                numbers = f"{chance:.1%} | {spread(first)} | {spread(last)}"
                lines.append(f"| {column} | {probe} | {mode} | {numbers} |")
            score = descriptor[column]
            lines.append(
                f"| {column} | {probe} | descriptor, no training | {score['chance']:.1%} | | "
                f"{score[key]:.1%} |"
            )
    return "\n".join(lines)


def spread(values):
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{np.mean(values):.1%} ± {2 * error:.1%}"


if __name__ == "__main__":
    main()
