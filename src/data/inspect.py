"""`codecvit inspect`: counts of a record set, and a picture of its first records."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from ..sequence import PatchSequence
from .labels import label_names, load_labels
from .record import Record
from .records import RecordSet

_CANVAS = 40  # grey where a record keeps no patch
_FRAMES = 8  # frames of a record in the picture
_GAP = 4


def counts(record_set: RecordSet) -> list[tuple[str, str]]:
    """What the table shows.

    Args:
      record_set: the set.

    Returns:
      (name, value) rows.
    """
    manifest = record_set.manifest
    tokens, number = manifest["tokens"], len(record_set)
    size = sum(shard["bytes"] for shard in manifest["shards"])
    storage = manifest["storage"]
    if "quality" in manifest:
        storage += f" at quality {manifest['quality']}"
    rows = [
        ("mode", f"{manifest['mode']}, size {manifest['size']}, patch {manifest['patch']}"),
        ("records", f"{number} in {len(manifest['shards'])} shards"),
        ("files failed", f"{manifest['failures']} (failures.jsonl)"),
        (
            "patches",
            f"min {tokens['min']}, mean {tokens['sum'] / max(number, 1):.1f}, max {tokens['max']} "
            f"of budget {manifest['budget']}",
        ),
        ("bytes", f"{size} ({size / max(number, 1):.0f} per record), {storage}"),
    ]
    texts = manifest.get("texts", {})
    rows += [(f"texts {name}", f"of {count} records") for name, count in texts.items()]
    rows += [(f"labels {name}", _describe(record_set, name)) for name in label_names(record_set)]
    return rows


def contact_sheet(record_set: RecordSet, count: int) -> Image.Image:
    """Records one below the other, their patches drawn back at their places.

    Args:
      record_set: the set.
      count: records to draw, evenly spread over the set.

    Returns:
      The picture: up to 8 frames of a clip side by side, a collage turned into its frames.
    """
    chosen = np.unique(np.linspace(0, len(record_set) - 1, count).round().astype(int))
    rows = [draw_record(record_set[int(index)]) for index in chosen]
    width = max(row.shape[1] for row in rows)
    height = sum(row.shape[0] + _GAP for row in rows) - _GAP
    sheet = np.full((height, width, 3), 255, np.uint8)
    top = 0
    for row in rows:
        sheet[top : top + row.shape[0], : row.shape[1]] = row
        top += row.shape[0] + _GAP
    return Image.fromarray(sheet)


def main(argv: list[str]) -> int:
    """The verb: returns 0, or 1 if the set cannot be read."""
    parser = argparse.ArgumentParser(
        prog="codecvit inspect", description="Counts of a record set, and a contact sheet."
    )
    parser.add_argument("records", help="folder of the record set")
    parser.add_argument(
        "--out", type=Path, help="draw records into this picture, patches at their places"
    )
    parser.add_argument(
        "--count", type=int, default=8, help="records in the picture (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        if args.count < 1:
            raise ValueError(f"count = {args.count} must be at least 1")
        record_set = RecordSet(args.records)
        table = Table(title=str(args.records), show_header=False, title_justify="left")
        for name, value in counts(record_set):
            table.add_row(name, value)
        Console().print(table)
        if args.out is not None:
            contact_sheet(record_set, args.count).save(args.out)
            print(f"wrote {args.out}")
    except ValueError as error:
        print(f"codecvit inspect: {error}", file=sys.stderr)
        return 1
    return 0


def _describe(record_set: RecordSet, name: str) -> str:
    try:
        labels = load_labels(record_set, name)
    except ValueError as error:
        return f"unusable: {error}"
    used = np.unique(labels.values[labels.values >= 0])
    return (
        f"{labels.values.shape[1]} per record, {len(used)} of {labels.num_classes} classes used, "
        f"{int((labels.values < 0).sum())} missing"
    )


def draw_record(record: Record, frames: int = _FRAMES) -> np.ndarray:
    """One record as a row of at most so many frames: uint8 [height, n * width + gaps, 3]."""
    return draw_sequence(record.sequence, record.view, frames)


def draw_sequence(
    sequence: PatchSequence, view: tuple[int, int], frames: int = _FRAMES
) -> np.ndarray:
    """Patches at their places: a row of at most so many frames of `view` (height, width) pixels."""
    patches, patch = sequence.patches, sequence.patch
    height, width = view
    rows, columns = height // patch, width // patch
    # Rows beyond the first frame's height are the further frames of a collage.
    t, h, w = sequence.positions.T
    frame_of = np.stack([t, h // rows], axis=1)
    there, place = np.unique(frame_of, axis=0, return_inverse=True)
    shown = np.unique(np.linspace(0, len(there) - 1, frames).round().astype(int))
    canvas = np.full((len(there), rows, columns, patch, patch, 3), _CANVAS, np.uint8)
    canvas[place.ravel(), h % rows, w] = patches
    pictures = canvas[shown].swapaxes(2, 3).reshape(len(shown), height, width, 3)
    padded = np.pad(pictures, ((0, 0), (0, 0), (0, _GAP), (0, 0)), constant_values=255)
    return padded.swapaxes(0, 1).reshape(height, -1, 3)[:, :-_GAP]
