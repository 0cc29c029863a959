"""CPU time and memory of packing a video, beside a floor that only decodes it.

    python benchmarks/codec_throughput.py CLIP... [--repeats 5] [--long CLIP]

One process on one core; medians of the repeats in ms of CPU time, taken in turn so that other load
on the machine spreads evenly; trust the ratios. The floor is what a loader of uniform frames pays
at the least: one pass that decodes every frame in one thread and scales 64 of them to the size of
the view (rgb24, bilinear, to numpy). Two views:

  pretrain  224 pixels, patch 14, 64 frames, 2,048 patches: `pack_video(CLIP)`
  llava     576 pixels letterboxed, patch 16, 64 frames, 8 mosaics as JPEG in memory

`--long` plays a clip over and over for six minutes (its packets are copied, not coded again) and
measures that file too. Memory is the largest resident set of a fresh process that packs one clip;
`two workers` is the wall time of packing a clip 16 times in one worker over that in two.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from codecvit import pack_video
from codecvit.codec.clip import sample_clip
from codecvit.codec.container import open_video
from codecvit.codec.llava.mosaic import lay_out
from codecvit.codec.selection import choose
from codecvit.codec.view import View
from codecvit.jobs import run_jobs

SAMPLES = 64
VIEWS = {"pretrain": View("crop", 224, 14), "llava": View("square", 576, 16)}
LONG_SECONDS = 360


def floor(path: Path, view: View, frames: int) -> None:
    """Decodes everything in order, scales 64 frames."""
    wanted = {i * (frames - 1) // (SAMPLES - 1) for i in range(SAMPLES)}
    with open_video(path) as (container, stream):
        scaler = av.video.reformatter.VideoReformatter()
        for i, frame in enumerate(container.decode(stream)):
            if i in wanted:
                place = view.place(frame.height, frame.width)
                size = place.scaled_width, place.scaled_height
                scaler.reformat(frame, *size, "rgb24", interpolation="BILINEAR").to_ndarray()


def pack_pretrain(path: Path) -> int:
    """What `codecvit pack` selects of one file; the number of patches."""
    return len(pack_video(path))


def pack_llava(path: Path) -> int:
    """The mosaics of one file; their number."""
    clip = sample_clip(path, SAMPLES, 576, 16, geometry="square")
    budget = min(8, len(clip)) * clip.rows * clip.columns
    return len(list(lay_out(choose(clip, budget)).files(png=False)))


PACKERS: dict[str, Callable[[Path], int]] = {"pretrain": pack_pretrain, "llava": pack_llava}


def measure(path: Path, repeats: int) -> dict[str, float]:
    """Medians in milliseconds of CPU time."""
    with open_video(path) as (container, stream):
        frames = sum(1 for _ in container.decode(stream))
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, view in VIEWS.items():
            for stage, call in (
                (f"{name} floor", lambda view=view: floor(path, view, frames)),
                (f"{name} pack", lambda name=name: PACKERS[name](path)),
            ):
                start = time.process_time()
                call()
                times.setdefault(stage, []).append(1000 * (time.process_time() - start))
    return {stage: statistics.median(values) for stage, values in times.items()}


def prolong(path: Path, out: Path, seconds: float) -> Path:
    """Copies the packets of a clip again and again until it lasts that long."""
    with av.open(str(out), "w") as target, av.open(str(path)) as first:
        template = first.streams.video[0]
        stream = target.add_stream_from_template(template)
        stream.time_base = template.time_base
        offset, step = 0, round(1 / (template.average_rate * template.time_base))
        while offset * template.time_base < seconds:
            end = 0
            with av.open(str(path)) as source:
                start = source.streams.video[0].start_time or 0
                for packet in source.demux(video=0):
                    if packet.size == 0:
                        continue
                    packet.pts += offset - start
                    packet.dts += offset - start
                    end = max(end, packet.pts)
                    packet.stream = stream
                    target.mux(packet)
            offset = end + step
    return out


def peak_memory(path: Path, view: str) -> float:
    """MB of a fresh process that packs one clip."""
    command = [sys.executable, __file__, str(path), "--peak-memory", view]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def two_workers(path: Path) -> float:
    """Speed-up of two workers over one."""
    spent = []
    for workers in (1, 2):
        # The start of a worker, with its imports, is not what is measured.
        results = run_jobs(pack_pretrain, [path] * (16 + workers), workers=workers)
        for _ in range(workers):
            next(results)
        start = time.monotonic()
        for _, patches in results:
            assert patches > 0
        spent.append(time.monotonic() - start)
    return spent[0] / spent[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--long", type=Path, metavar="CLIP", help="also play it for six minutes")
    parser.add_argument("--peak-memory", choices=VIEWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_memory:
        PACKERS[args.peak_memory](args.clips[0])
        # Not getrusage: its maximum survives from the process that started this one.
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
        return
    cores = os.sched_getaffinity(0)
    print(f"{platform.processor() or platform.machine()}, av {av.__version__}, ms of CPU time")
    if len(cores) > 1:
        print(f"{'two workers / one':36} {two_workers(args.clips[0]):8.2f} x")
        os.sched_setaffinity(0, {min(cores)})
    stages = [f"{name} {part}" for name in VIEWS for part in ("floor", "pack", "ratio")]
    print(f"{'clip':36}", *(f"{stage:>14}" for stage in stages), "      MB (pretrain, llava)")
    ratios = {name: [] for name in VIEWS}
    with tempfile.TemporaryDirectory() as folder:
        clips = list(args.clips)
        if args.long:
            clips.append(prolong(args.long, Path(folder) / f"long{args.long.suffix}", LONG_SECONDS))
        for path in clips:
            row = measure(path, args.repeats)
            for name in VIEWS:
                row[f"{name} ratio"] = row[f"{name} pack"] / row[f"{name} floor"]
                ratios[name].append(row[f"{name} ratio"])
            cells = (f"{row[s]:14.2f}" if "ratio" in s else f"{row[s]:14.0f}" for s in stages)
            memory = ", ".join(f"{peak_memory(path, name):.0f}" for name in VIEWS)
            print(f"{path.name[:36]:36}", *cells, f"      {memory}", flush=True)
    for name, values in ratios.items():
        count = len(args.clips)
        mean = float(np.exp(np.mean(np.log(values[:count]))))
        print(f"{name}: geometric mean of {count} clips {mean:.2f} x floor")


if __name__ == "__main__":
    main()
