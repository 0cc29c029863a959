"""What benchmarks/codec_vs_frames.py and benchmarks/ladder.py share: runs on made clips.

A seed has its own clips, its own clusters and its own initial weights, so that the spread over
seeds covers all three. Everything is made by the verbs of `codecvit`, each in a process of its own;
what is there already is used again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from codecvit.data.labels import load_labels, save_labels
from codecvit.data.records import RecordSet
from codecvit.metrics import read_metrics

NUM_FRAMES = 16
LABELS = {"clusters": (), "shapes": ("--part", "shape")}
CLUSTERS = 16  # of each
LABELLED = "codec-128"  # the record sets whose clusters all others get
SCORES = {
    "motion, k-NN": "probe/motion/knn_top1",
    "motion, linear": "probe/motion/linear_top1",
    "digit, k-NN": "probe/digit/knn_top1",
    "digit, linear": "probe/digit/linear_top1",
}
# Student's t of the two-sided 95 % interval, by the number of seeds.
STUDENT_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}


def run(verb, *arguments):
    """One verb of the command line; ends the benchmark with its output if it fails."""
    command = [sys.executable, "-m", "codecvit", verb, *map(str, arguments)]
    print("$ codecvit", *command[3:], flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}\nthe command above failed with exit status {done.returncode}")


def make_records(base: Path, seed, clips, name, budget, *, mode="codec", size=112, settings=()):
    """Clips of a seed, packed in one way and labelled.

    Args:
      base: folder of the seed.
      seed: of the clips.
      clips: their numbers, (training, test).
      name: of the record sets.
      budget: tokens of a record.
      mode, size, settings: as `codecvit pack` takes them.

    Returns:
      The folder with train/MODE and test/MODE.
    """
    if not (base / "data" / "test.csv").exists():
        counts = ("--train-clips", clips[0], "--test-clips", clips[1])
        run("demo-data", "--out", base / "data", "--seed", seed, *counts)
    folder = base / "records" / name
    view = ("--size", size, "--num-frames", NUM_FRAMES, "--budget", budget, "--mode", mode)
    options = [option for setting in settings for option in ("--set", setting)]
    for split in ("train", "test"):
        if not (folder / split / mode / "manifest.json").exists():
            listing = base / "data" / f"{split}.csv"
            run("pack", listing, "--out", folder / split, *view, *options)
    labelled = base / "records" / LABELLED / "train" / "codec"
    if name == LABELLED:
        cluster(labelled)
    else:
        if not labelled.exists():
            make_records(base, seed, clips, LABELLED, 128)
        copy_labels(labelled, folder / "train" / mode)
    return folder


def cluster(records):
    """Labels by the descriptors of the clips.

    Every way of packing gets these: descriptors depend on the selection's settings, and what is
    compared are inputs, not labels.
    """
    for name, part in LABELS.items():
        if not (records / "labels" / f"{name}.npy").exists():
            run("cluster", records, "--name", name, *part, "--k", CLUSTERS, "--n", 1)


def copy_labels(source, target):
    """Cluster labels of one record set for another of the same clips."""
    given, wanted = RecordSet(source), RecordSet(target)
    if list(given.keys) != list(wanted.keys):
        sys.exit(f"{target} has other clips than {source}: delete {target}")
    for name in LABELS:
        labels = load_labels(given, name)
        meta = {"num_classes": labels.num_classes, "copied_from": str(source)}
        save_labels(wanted, name, labels.values, meta)


def train(records, workdir, *, mode="codec", steps, seed, **fields):
    """A run of src/configs/demo.py with other fields (dots as double underscores)."""
    settings = f"data={records},mode={mode},steps={steps},seed={seed}"
    settings += f",classes={CLUSTERS * len(LABELS)}"
    fields = {"checkpoint__every_steps": 1_000_000, "log_steps": 50} | fields
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    run("train", f"--config=src/configs/demo.py:{settings}", f"--workdir={workdir}", *flags)


def scores(workdir):
    """Accuracies before and after training, by the names of SCORES."""
    found = read_metrics(workdir)
    values = {name: [row[key] for row in found if key in row] for name, key in SCORES.items()}
    return {name: {"untrained": v[0], "trained": v[-1]} for name, v in values.items()}


def spread(values, signed=False):
    """Mean and, of several, half the width of its 95 % interval by Student's t."""
    mean = f"{np.mean(values):+.1%}" if signed else f"{np.mean(values):.1%}"
    if len(values) < 2:
        return mean
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean} ± {STUDENT_T[len(values)] * error:.1%}"
