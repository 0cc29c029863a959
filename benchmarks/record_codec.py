"""Bytes, speed and loss of the ways to store a record's patches.

    python benchmarks/record_codec.py FOLDER_OF_VIDEOS

Command and figures of the default are quoted in docs/data_format.md. Takes about a minute on one
core for a dozen clips; expected result: a table with one row per storage.
"""

from __future__ import annotations

import argparse
import io
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, features

from codecvit.codec.clip import sample_clip
from codecvit.codec.errors import MediaError
from codecvit.codec.selection import select
from codecvit.data.record import (
    Record,
    Storage,
    decode_mosaic,
    decode_record,
    encode_mosaic,
    encode_record,
)
from codecvit.data.sources import list_items
from codecvit.sequence import PatchSequence

STORAGES = {
    "raw": Storage("raw"),
    "png": Storage("png"),
    **{f"jpeg q{q}": Storage("jpeg", q) for q in (85, 90, 95, 98)},
}


def records(folder: Path, budget: int) -> list[Record]:
    """One codec record per video that can be read."""
    found = []
    for item in list_items([folder]):
        try:
            clip = sample_clip(item.path)
        except MediaError as error:
            print(f"skipped: {error}")
            continue
        (sequence,) = select(clip, "codec", budget)
        found.append(
            Record(
                key=item.key,
                mode="codec",
                view=clip.yuv_M3HW.shape[2:],
                budget=budget,
                sequence=sequence,
                descriptor=np.zeros(0, np.float32),  # the same few kB in every storage
                pts=clip.seconds_M.astype(np.float32),
                gaps=clip.gaps_T.astype(np.float32),
            )
        )
    return found


def fastest(call: Callable[[], object], repeats: int = 5) -> tuple[float, object]:
    """Milliseconds of the fastest of several calls, and the result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return 1000 * min(times), result


def squared_error(a: PatchSequence, patches: np.ndarray) -> float:
    return float(np.mean((a.patches.astype(np.float32) - patches) ** 2))


def psnr(error: float) -> str:
    """Peak signal-to-noise ratio of a mean squared error, in dB."""
    return "lossless" if error == 0 else f"{10 * np.log10(255**2 / error):.1f}"


def measure_storage(record: Record, storage: Storage) -> tuple[float, ...]:
    encode, data = fastest(lambda: encode_record(record, storage))
    decode, back = fastest(lambda: decode_record(data))
    return len(data), encode, decode, squared_error(record.sequence, back.sequence.patches)


def measure_420(record: Record, quality: int) -> tuple[float, ...]:
    """The same mosaic with halved chroma, which this project does not write."""
    patches = record.sequence.patches
    image = Image.open(io.BytesIO(encode_mosaic(patches, Storage("png")))).convert("RGB")

    def encode() -> bytes:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
        return file.getvalue()

    encode_ms, data = fastest(encode)
    decode_ms, back = fastest(lambda: decode_mosaic(data, len(patches), patches.shape[1]))
    return len(data), encode_ms, decode_ms, squared_error(record.sequence, back)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of videos")
    parser.add_argument("--budget", type=int, default=2048, help="patches per record")
    args = parser.parse_args()
    chosen = records(args.folder, args.budget)
    turbo = features.version("libjpeg_turbo")
    print(f"{len(chosen)} records of up to {args.budget} patches of 14 pixels, one core")
    print(f"{platform.processor() or platform.machine()}, Pillow {PIL.__version__}, turbo {turbo}")
    print("| storage | kB a record | encode ms | decode ms | PSNR, dB | worst record |")
    print("|---|---|---|---|---|---|")
    rows = {
        name: [measure_storage(record, storage) for record in chosen]
        for name, storage in STORAGES.items()
    }
    rows["jpeg q95, 4:2:0"] = [measure_420(record, 95) for record in chosen]
    for name, values in rows.items():
        size, encode, decode, error = np.mean(values, axis=0)
        worst = max(value[3] for value in values)
        print(
            f"| {name} | {size / 1000:.0f} | {encode:.1f} | {decode:.1f} "
            f"| {psnr(error)} | {psnr(worst)} |"
        )


if __name__ == "__main__":
    main()
