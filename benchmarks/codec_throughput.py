"""CPU time of packing a video, stage by stage, beside a floor that only decodes it.

    python benchmarks/codec_throughput.py CLIP... [--repeats 5]

Prints milliseconds of CPU time of one process (medians of the repeats, stages taken in turn so that
other load on the machine spreads evenly). The floor decodes every frame in one thread and scales 64
of them to RGB with the short side at 224: what a loader of uniform frames pays at the least. `pack`
is one whole call of `pack_video(CLIP)`: 64 frames, 2,048 patches; `all` packs the modes codec,
frames and collage and the descriptor from one decoding, as `codecvit pack` does.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import av

from codecvit import pack_video
from codecvit.codec.clip import sample_clip
from codecvit.codec.decode import open_video, scaled_size
from codecvit.codec.descriptor import descriptor
from codecvit.codec.selection import MODES, select

COLUMNS = (
    "floor",
    "decode",
    "motion",
    "select",
    "descriptor",
    "pack",
    "all",
    "pack/floor",
    "all/floor",
)


def floor(path: Path, frames: int) -> None:
    """Decodes everything in order, scales 64 frames."""
    wanted = {i * (frames - 1) // 63 for i in range(64)}
    with open_video(path) as (container, stream):
        scaler = av.video.reformatter.VideoReformatter()
        for i, frame in enumerate(container.decode(stream)):
            if i in wanted:
                height, width = scaled_size(frame.height, frame.width, 224)
                scaler.reformat(frame, width, height, "rgb24").to_ndarray()


def measure(path: Path, repeats: int) -> dict[str, float]:
    """Medians in milliseconds, and the two ratios."""
    frames = int(sample_clip(path).frame_ids_M[-1]) + 1
    times: dict[str, list[float]] = {}

    def timed(name, call, *args):
        start = time.process_time()
        result = call(*args)
        times.setdefault(name, []).append(1000 * (time.process_time() - start))
        return result

    def everything():
        clip = sample_clip(path)
        for mode in MODES:
            select(clip, mode)
        descriptor(clip)

    for _ in range(repeats):
        timed("floor", floor, path, frames)
        clip = timed("decode", sample_clip, path)
        timed("motion", lambda clip=clip: clip.motion)
        timed("select", select, clip)
        timed("descriptor", descriptor, clip)
        timed("pack", pack_video, path)
        timed("all", everything)
    row = {name: statistics.median(values) for name, values in times.items()}
    row["pack/floor"] = row["pack"] / row["floor"]
    row["all/floor"] = row["all"] / row["floor"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, av {av.__version__}, ms of CPU time")
    print(f"{'clip':36}", *(f"{name:>10}" for name in COLUMNS))
    for path in args.clips:
        row = measure(path, args.repeats)
        cells = (f"{row[c]:10.2f}" if "/" in c else f"{row[c]:10.0f}" for c in COLUMNS)
        print(f"{path.name[:36]:36}", *cells)


if __name__ == "__main__":
    main()
