"""Do two encoders together see more than each alone?

    python scripts/llava/two_encoders.py --out DIR [--seeds 0 1 2]

A video encoder on codec patches, and an image encoder on a single frame.

On the clips, questions and lessons of scripts/llava/demo.sh, in models that differ in nothing but
their encoders: "codec", the demo's encoder on the patches of a clip; "image", one pretrained on
single frames, on the first frame alone; "both", fused by MERV's weighted sum (`fusion=score`).
"both" is also asked with either encoder masked. A step whose result is there takes no time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import demo

from codecvit.trainers.checkpoint_reading import find_checkpoint

POOL = (8, 4, 4)  # 128 tokens of a clip, from whichever encoder
CODEC, IMAGE = "codec=onevision_encoder:{codec}", "image=onevision_frames:{image}@1"
MODELS = {"codec": (CODEC,), "image": (IMAGE,), "both": (CODEC, IMAGE)}
MASKED = ("without-codec", "without-image")
CLUSTERS = 16
COLUMNS = (*MODELS, *MASKED)


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
        "--proof", type=Path, help="OUT of demo.sh: its clips and mosaics are taken"
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
    data, asked, seen = place / "data", place / "questions", place / "video"

    results = []
    for seed in args.seeds:
        found = {"seed": seed}
        for name, texts in MODELS.items():
            sources = [text.format(codec=codec, image=image) for text in texts]
            work = out / f"{name}-{seed}"
            start = work / "start"
            if not (start / "config.json").is_file():
                demo.make_start(start, sources, asked / "train.json", seed, pool=POOL)
            for lesson, steps in (("open", args.open_steps), ("train", args.steps)):
                rows = seen / f"{lesson}.jsonl"
                demo.train(start, rows, work / lesson, args.batch, steps, seed, root=data)
                start = work / lesson
            model, benchmark = work / "train" / "model", asked / "benchmark"
            assets = None if name == "image" else seen / "assets"
            shown = ("--benchmark", benchmark, *(("--assets", assets) if assets else ()))
            demo.run(
                "llava", "eval", "--model", model, *shown, *demo.ASKING, "--out", work / "eval"
            )
            found[name] = figures(work / "eval")
            for control in MASKED if name == "both" else ():
                demo.ask_controlled(model, benchmark, assets, control, work / f"eval-{control}")
                found[control] = figures(work / f"eval-{control}")
        results.append(found)
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps(found), flush=True)
    print(table(results))
    print(f"\nall of it in {(time.monotonic() - begun) / 60:.0f} minutes: {out / 'results.json'}")
    failures = claims(results)
    for failure in failures:
        print(f"NOT SHOWN: {failure}")
    return 1 if failures else 0


def image_encoder(place: Path, steps: int) -> Path:
    """An encoder of single frames, pretrained on the demo's clips: one frame of each, whole.

    Its labels are clusters of what moves in the clip, as the demo's second labels are.
    """
    folder = place / "export_image"
    if (folder / "config.json").is_file():
        return folder
    records, work = place / "image_records", place / "runs" / "image"
    view = ("--size", 112, "--budget", 64, "--num-frames", 8)
    source = place / "data" / "train.csv"
    demo.run("pack", source, "--out", records / "train", "--mode", "frames", *view)
    cluster = ("--name", "shapes", "--part", "shape", "--k", CLUSTERS, "--n", 1)
    demo.run("cluster", records / "train" / "frames", *cluster)
    settings = f"data={records},mode=frames,labels=shapes,classes={CLUSTERS},drawn=1,steps={steps}"
    config = f"--config=src/configs/demo.py:{settings},probes="
    demo.run("train", config, f"--workdir={work}", "--config.sources.video.budget=64")
    demo.run("export", find_checkpoint(work), "--out", folder, "--image-size", 112)
    return folder


def figures(folder: Path) -> dict:
    """Accuracy with its interval by task and over both, and the encoders' mean weights."""
    summary = json.loads((folder / "summary.json").read_text())
    names = ("accuracy", "low", "high")
    both = {"both tasks": [round(summary[name], 4) for name in names]}
    return {**demo.accuracies(folder), **both, "weights": summary.get("fusion", {})}


def table(results: list[dict]) -> str:
    """Accuracy per seed and its mean, in %, and the weights of "both", as Markdown."""
    seeds = " | ".join(f"seed {found['seed']}" for found in results)
    lines = [f"| task | model | {seeds} | mean |", "|---" * (len(results) + 3) + "|"]
    for task in (*demo.TASKS, "both tasks"):
        for name in COLUMNS:
            values = [found[name][task][0] for found in results]
            mean, half = demo.interval(values)
            cells = " | ".join(f"{100 * value:.1f}" for value in values)
            lines.append(f"| {task} | {name} | {cells} | {100 * mean:.1f} ± {100 * half:.1f} |")
    for encoder in ("codec", "image"):
        values = [found["both"]["weights"].get(encoder, float("nan")) for found in results]
        cells = " | ".join(f"{value:.3f}" for value in values)
        lines.append(f"| weight of {encoder} | both | {cells} | |")
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
