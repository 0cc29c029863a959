"""What scripts/demo.sh runs: the verbs of `codecvit`, one after the other, and the report.

Every step is a command that can be run by hand; it is printed before it runs. A step whose result
is there already takes no time: the verbs see it.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import demo_report

from codecvit.codec.clip import sample_clip
from codecvit.codec.errors import MediaError
from codecvit.data.sources import EXTENSIONS
from codecvit.trainers.checkpoint_reading import find_checkpoint

VIEW = ["--size", "112", "--budget", "128", "--num-frames", "8"]
MODES = ("codec", "frames")
CLUSTERS = 16  # of each clustering
STEPS = 600
WINDOW_SECONDS = 1.0
MOST_EPOCHS = 40  # of a small folder of videos: more would only learn it by heart


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument("--seed", type=int, default=0, help="of the made clips")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of each run")
    args = parser.parse_args()
    started, out = time.monotonic(), args.out
    out.mkdir(parents=True, exist_ok=True)

    if args.videos is None:
        run("demo-data", "--out", out / "data", "--seed", args.seed)
        inputs = {split: out / "data" / f"{split}.csv" for split in ("train", "test")}
        labels = ["motion", "digit"]
    else:
        inputs = {split: out / "data" / f"{split}.csv" for split in ("train", "test")}
        cut_windows(args.videos, inputs)
        labels = ["video"]

    records = out / "records"
    for split, source in inputs.items():
        run("pack", source, "--out", records / split, "--mode", ",".join(MODES), *VIEW)
    # A clip has the same descriptor in both sets, hence the same labels.
    train_sets = [records / "train" / mode for mode in MODES]
    count = json.loads((train_sets[0] / "manifest.json").read_text())["records"]
    clusters = max(2, min(CLUSTERS, count // 2))
    steps = min(args.steps, max(10, MOST_EPOCHS * count // 16))
    # Two clusterings teach one head: the whole descriptor tells how things move, its part `shape`
    # what they look like.
    for name, part in (("clusters", ()), ("shapes", ("--part", "shape"))):
        run("cluster", *train_sets, "--name", name, *part, "--k", clusters, "--n", 1)

    for mode in MODES:
        settings = f"data={records},mode={mode},classes={2 * clusters},steps={steps}"
        settings += f",probes={'+'.join(labels)}"
        run("train", f"--config=src/configs/demo.py:{settings}", f"--workdir={out / 'runs' / mode}")
    train, test = (records / split / "codec" for split in ("train", "test"))
    descriptor = out / "descriptor.json"
    sets = ("--train", train, "--test", test)
    run("probe-records", "--descriptor", *sets, "--labels", *labels, "--out", descriptor)

    checkpoint = out / "runs" / "codec" / "checkpoints"
    checkpoint /= find_checkpoint(out / "runs" / "codec").name
    run("export", checkpoint, "--out", out / "export", "--image-size", 112)
    pictures = out / "pictures"
    pictures.mkdir(exist_ok=True)
    for i, clip in enumerate(pick_clips(inputs["test"])):
        run("show", clip, "--out", pictures / f"selection{i}.png", *VIEW)
    run("inspect", train, "--out", pictures / "records.png")

    report = demo_report.write(out, labels, MODES, time.monotonic() - started)
    print(f"\ncheckpoint       {checkpoint}\nPyTorch folder   {out / 'export'}")
    print(f"report           {report}\npictures         {pictures}\n")
    print(demo_report.as_text(demo_report.results(out, labels, MODES)))
    return 0


def run(verb: str, *arguments: object) -> None:
    """One verb of the command line, in a process of its own; ends the demo if it fails."""
    command = ["codecvit", verb, *map(str, arguments)]
    print(f"\n$ {' '.join(command)}", flush=True)
    code = subprocess.run([sys.executable, "-m", *command]).returncode
    if code:
        sys.exit(f"demo: the command above failed with exit status {code}")


def cut_windows(videos: Path, outputs: dict[str, Path]) -> None:
    """Lists windows of about a second of every video, in turn for training and for test.

    A folder of videos has no labels, so the probe asks which video a window comes from.
    """
    rows: dict[str, list[list[object]]] = {split: [] for split in outputs}
    suffixes = {suffix for suffix, kind in EXTENSIONS.items() if kind == "video"}
    for path in sorted(p for p in videos.rglob("*") if p.suffix.lower() in suffixes):
        name = path.relative_to(videos).as_posix()
        try:
            seconds = float(sample_clip(path, 2, 112, 14).seconds_M[-1])
        except MediaError as error:
            print(f"demo: left out: {error}")
            continue
        if seconds <= 0:
            print(f"demo: left out: {path}: a single frame can't be cut in two windows")
            continue
        windows = max(2, int(seconds / WINDOW_SECONDS))
        edges = [round(seconds * i / windows, 3) for i in range(windows)]
        for i, (start, end) in enumerate(zip(edges, [*edges[1:], ""], strict=True)):
            rows[("train", "test")[i % 2]].append([path.resolve(), name, start, end])
    if not rows["train"]:
        sys.exit(f"demo: {videos} holds no readable video ({', '.join(sorted(suffixes))})")
    for split, path in outputs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["path", "video", "start", "end"], *rows[split]])


def pick_clips(listing: Path, count: int = 3) -> list[Path]:
    """A few clips of a CSV, evenly spread."""
    with listing.open(newline="") as file:
        paths = list(dict.fromkeys(row["path"] for row in csv.DictReader(file)))
    step = max(1, len(paths) // count)
    return [listing.parent / path for path in paths[::step][:count]]


if __name__ == "__main__":
    sys.exit(main())
