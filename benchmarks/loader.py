"""What the loader delivers on one core, beside decoding and packing the same videos on the fly.

    python benchmarks/loader.py --videos DIR [--budget 2048] [--seconds 10]

Packs every video once into codec records (64 frames, 224 pixels, JPEG cells), then reads batches of
them; packing on the fly is `pack_video` on the same files. Images: the videos' first frames as
JPEG files, read with a random resized crop and a flip at 224 pixels. All numbers are CPU time of
this process with all its threads, so they are per core whatever else runs. `needs` is how many
cores keep an accelerator busy that takes so many samples a second (--demand).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from codecvit.__main__ import main as codecvit
from codecvit.codec.clip import sample_clip
from codecvit.codec.pack import pack_video
from codecvit.data.augment import AugmentConfig
from codecvit.data.pipeline import make_loader
from codecvit.data.records import RecordSet
from codecvit.data.sources import list_items

AUGMENT = AugmentConfig(crop_area=(0.7, 1.0), crop_aspect=(0.8, 1.25), flip=0.5)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=10.0, help="CPU time of a measurement")
    parser.add_argument("--demand", type=float, help="samples/s that an accelerator takes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        videos = packable(args.videos, folder / "images")
        packed = ["--out", str(folder / "records"), "--workers", "0", "--size", "224"]
        run("pack", *map(str, videos), *packed, "--mode", "codec", "--budget", str(args.budget))
        run("pack", str(folder / "images"), *packed)
        fly = rate(lambda i: pack_video(videos[i % len(videos)], budget=args.budget), 1, args)
        sets = {
            f"codec records, {args.budget} patches": ("codec", args.budget, AugmentConfig()),
            f"codec records, {args.budget} patches, flipped": (
                "codec",
                args.budget,
                AugmentConfig(flip=1.0),
            ),
            "images, 224 pixels, crop and flip": ("image", 256, AUGMENT),
        }
        print(f"\n{len(videos)} videos, one core\n")
        head = "| source | samples/s/core | of on the fly |"
        print(head + (" needs |" if args.demand else ""))
        print("|---|---|---|" + ("---|" if args.demand else ""))
        row(f"videos on the fly, {args.budget} patches", fly, fly, args)
        for name, (mode, budget, augment) in sets.items():
            record_set = RecordSet(folder / "records" / mode)
            with make_loader(record_set, batch_size=8, budget=budget, augment=augment) as loader:
                next(loader)
                found = rate(lambda _, loader=loader: next(loader), 8, args)
            row(name, found, fly, args)


def packable(videos, images):
    """The videos that can be packed; their first frames go into `images`."""
    images.mkdir()
    found = []
    for item in list_items([str(videos)]):
        path = Path(videos) / item.source
        if item.kind != "video" or not path.is_file():
            continue
        try:
            clip = sample_clip(path, 2, 392, 14)
        except ValueError as error:
            print(f"left out: {error}")
            continue
        Image.fromarray(clip.rgb()[0]).save(images / f"{len(found)}.jpg", quality=90)
        found.append(path)
    return found


def run(*verb):
    if codecvit(list(verb)):
        raise SystemExit(f"codecvit {' '.join(verb)} failed")


def rate(call, samples, args):
    """Samples per second of CPU time."""
    start, count = time.process_time(), 0
    while time.process_time() - start < args.seconds or count < 3:
        call(count)
        count += 1
    return samples * count / (time.process_time() - start)


def row(name, found, fly, args):
    needs = f" {args.demand / found:.1f} cores |" if args.demand else ""
    print(f"| {name} | {found:.1f} | {np.round(found / fly, 1):g} x |{needs}", flush=True)


if __name__ == "__main__":
    main()
