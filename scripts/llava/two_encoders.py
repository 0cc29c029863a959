"""Do two encoders together see more than each alone?

    python scripts/llava/two_encoders.py --out DIR [--seeds 0 1 2]

A video encoder on codec patches, and an image encoder on a single frame.

On the clips, questions and lessons of scripts/llava/demo.sh, in models that differ in nothing but
their encoders: "codec", that script's model, the demo's encoder on the patches of a clip; "image",
one pretrained on single frames, on the first frame alone; "both", the tokens of one after those of
the other (`fusion=concat`). "both" is also asked with the tokens of either encoder zeroed. A step
whose result is there takes no time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import demo

from codecvit.trainers.checkpoint_reading import find_checkpoint

# A token per patch, in each encoder's own grid: 128 of the codec's, 64 of the frame.
FIELDS = {"fusion": "concat", "pool_level": 1}
MASKED = ("without-codec", "without-image")
COLUMNS = ("codec", "image", "both", *MASKED)
# The image encoder's pretraining: `DRAWS` frames of each of `CLIPS`, labelled with their digit.
CLIPS, DRAWS, IMAGE_BATCH = 4000, 4, 64


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("demo_out/two_encoders"))
    parser.add_argument("--demo", type=Path, default=Path("demo_out"), help="of scripts/demo.sh")
    parser.add_argument(
        "--encoder", type=Path, help="an export (default: the demo's, made if needed)"
    )
    parser.add_argument("--image-encoder", type=Path, help="likewise, of single frames")
    parser.add_argument("--encoder-steps", type=int, default=600, help="if they have to be made")
    parser.add_argument(
        "--proof",
        type=Path,
        help="OUT of demo.sh, run with the same encoder: its clips, mosaics and answers are taken",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--open-steps", type=int, default=demo.OPEN_STEPS, help="first lesson")
    parser.add_argument("--steps", type=int, default=demo.STEPS, help="of the second lesson")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--train-clips", type=int, default=4000)
    parser.add_argument("--test-clips", type=int, default=400)
    parser.add_argument("--data-seed", type=int, default=1, help="of the made clips")
    args = parser.parse_args()
    begun, out = time.monotonic(), args.out
    codec = args.encoder or demo.demo_encoder(args.demo, args.encoder_steps)
    image = args.image_encoder or image_encoder(args.demo, args.encoder_steps)
    place = args.proof or out
    if args.proof is None:
        demo.make_data(place, args.train_clips, args.test_clips, args.data_seed, seen=("video",))
    video, frame = f"codec=onevision_encoder:{codec}", f"image=onevision_frames:{image}@1"
    models = {"codec": codec, "image": [frame], "both": [video, frame]}

    results = []
    for seed in args.seeds:
        found = {"seed": seed}
        for name, sources in models.items():
            # The folders of demo.py: what it left there is found again.
            work = place / f"video-{seed}" if name == "codec" else out / f"{name}-{seed}"
            found |= answers(name, sources, place, work, args, seed)
        results.append(found)
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps(found), flush=True)
    print(table(results))
    print(f"\nall of it in {(time.monotonic() - begun) / 60:.0f} minutes: {out / 'results.json'}")
    failures = claims(results)
    for failure in failures:
        print(f"NOT SHOWN: {failure}")
    return 1 if failures else 0


def answers(
    name: str,
    sources: Path | list[str],
    place: Path,
    work: Path,
    args: argparse.Namespace,
    seed: int,
) -> dict:
    """Figures of a model, and of "both" with either encoder left out, by the names of COLUMNS."""
    data, asked, seen = place / "data", place / "questions", place / "video"
    controls = MASKED if name == "both" else ()
    evals = {name: work / "eval", **{c: work / f"eval-{c}" for c in controls}}
    if not all((folder / "summary.json").is_file() for folder in evals.values()):
        start = work / "start"
        alone = name == "codec"
        if not (start / "config.json").is_file():
            fields = {} if alone else FIELDS
            demo.make_start(start, sources, asked / "train.json", seed, **fields)
        root = "" if alone else data  # encoders of frames decode the clips themselves
        model = demo.teach(start, seen, work, args, seed, root)
        benchmark = asked / "benchmark"
        assets = None if name == "image" else seen / "assets"
        shown = ("--benchmark", benchmark, *(("--assets", assets) if assets else ()))
        demo.run("llava", "eval", "--model", model, *shown, *demo.ASKING, "--out", work / "eval")
        for control in controls:
            demo.ask_controlled(model, benchmark, assets, control, evals[control])
    return {column: figures(folder) for column, folder in evals.items()}


def image_encoder(place: Path, steps: int) -> Path:
    """An encoder of single frames, taught by labels, as image encoders are by what people wrote.

    Its frames are of other clips than those that questions are asked about.
    """
    folder = place / "export_image"
    if (folder / "config.json").is_file():
        return folder
    data, records, work = (place / name for name in ("image_data", "image_records", "runs/image"))
    demo.run("demo-data", "--out", data, "--train-clips", CLIPS)
    view = ("--size", 112, "--budget", 64, "--num-frames", 8, "--draws", DRAWS, "--seed", 0)
    demo.run("pack", data / "train.csv", "--out", records / "train", "--mode", "frames", *view)
    settings = f"data={records},mode=frames,labels=digit,classes=10,drawn=1,steps={steps},probes="
    batch = f"--config.sources.video.batch_size={IMAGE_BATCH}"
    config = f"--config=src/configs/demo.py:{settings}"
    demo.run("train", config, f"--workdir={work}", "--config.sources.video.budget=64", batch)
    demo.run("export", find_checkpoint(work), "--out", folder, "--image-size", 112)
    return folder


def figures(folder: Path) -> dict:
    """Accuracy with its interval, by task and over both."""
    summary = json.loads((folder / "summary.json").read_text())
    names = ("accuracy", "low", "high")
    both = {"both tasks": [round(summary[name], 4) for name in names]}
    return {**demo.accuracies(folder), **both}


def table(results: list[dict]) -> str:
    """Accuracy per seed and its mean, in %, as Markdown."""
    seeds = " | ".join(f"seed {found['seed']}" for found in results)
    lines = [f"| task | model | {seeds} | mean |", "|---" * (len(results) + 3) + "|"]
    for task in (*demo.TASKS, "both tasks"):
        for name in COLUMNS:
            values = [found[name][task][0] for found in results]
            mean, half = demo.interval(values)
            cells = " | ".join(f"{100 * value:.1f}" for value in values)
            lines.append(f"| {task} | {name} | {cells} | {100 * mean:.1f} ± {100 * half:.1f} |")
    return "\n".join(lines)


def claims(results: list[dict]) -> list[str]:
    """What was to be shown and was not: both together at least as good as the better one."""
    gains = [
        found["both"]["both tasks"][0]
        - max(found[name]["both tasks"][0] for name in ("codec", "image"))
        for found in results
    ]
    mean, half = demo.interval(gains)
    print(f"both minus the better one: {100 * mean:+.1f} ± {100 * half:.1f} points")
    return [f"both together are {-100 * mean:.1f} points below the better one"] if mean < 0 else []


if __name__ == "__main__":
    sys.exit(main())
