"""`codecvit search`: what lies nearest to a clip or picture in a feature file.

    codecvit search --index features.npz --query clip.mp4 --out nearest.png

The query is packed as the files of the index were and embedded by the same encoder; --key asks for
what lies near to a member of the index instead.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..codec.errors import MediaError
from ..data.inspect import draw_record, draw_sequence
from ..data.packing import PackOptions, item_sequence
from ..data.records import RecordError, RecordSet
from ..data.sources import Item, list_items
from .index import Index, encoder_hash, read_index

_TILE = 96  # pixels, height of a picture of the sheet
_TEXT = 16
_GAP = 6
_FRAMES = 3
_INK, _PAPER, _NOTHING = (20, 20, 20), (255, 255, 255), (205, 205, 205)
_FRAGMENT = re.compile(r"(?P<path>.*)#t=(?P<start>[\d.]+)(,(?P<end>[\d.]+))?")


class Hit(NamedTuple):
    """One neighbour: its number in the index, and its cosine to the query."""

    number: int
    cosine: float


def nearest(index: Index, query_D: np.ndarray, top: int, but: int | None = None) -> list[Hit]:
    """The members of the index with the largest cosine, found exactly.

    Args:
      index: the features.
      query_D: float [D].
      top: how many; fewer if the index is smaller.
      but: number of a member that is left out, the query itself.

    Returns:
      Nearest first; of equal ones the lower number.

    Raises:
      ValueError: the width is not that of the index.
    """
    # Imported here: --help needs no jax.
    from ..cluster.nearest import nearest_centres, unit_rows

    wanted = min(top + (but is not None), len(index.keys))
    found = nearest_centres(query_D[None], index.features, wanted)[0]
    cosines = unit_rows(index.features[found]) @ unit_rows(query_D[None])[0]
    hits = [Hit(int(n), float(c)) for n, c in zip(found, cosines, strict=True) if n != but]
    return hits[:top]


def embed_query(index: Index, path: str, checkpoint: str | None) -> tuple[Item, np.ndarray]:
    """The embedding of a file, made as those of the index were.

    Args:
      index: says how files are packed, and which encoder it wants.
      path: a video or image.
      checkpoint: the encoder; None takes the path that the index was made with.

    Returns:
      The file and float32 [D].

    Raises:
      ValueError: the file cannot be read, or the encoder is another one.
    """
    from ..convert.load import load

    items = list_items([path])
    if len(items) != 1:
        raise ValueError(f"--query {path} stands for {len(items)} files: name one")
    encoder = load(checkpoint or index.about["encoder"])
    if encoder_hash(encoder) != index.about["encoder_sha256"]:
        named = checkpoint or index.about["encoder"]
        raise ValueError(
            f"{named} is not the encoder of the index, whose SHA-256 starts with "
            f"{index.about['encoder_sha256'][:12]}: give that one with --checkpoint, or embed the "
            "files again"
        )
    return items[0], encoder.pooled([item_sequence(index.packing, items[0])])[0]


def contact_sheet(rows: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures below each other, each under its line of text; the first is the query."""
    font = ImageFont.load_default(_TEXT - 3)
    widest = max(max(font.getlength(text), picture.width) for text, picture in rows)
    width, height = int(widest) + 2 * _GAP, _TILE + _TEXT + 2 * _GAP
    sheet = Image.new("RGB", (width, len(rows) * height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for row, (text, picture) in enumerate(rows):
        pen.text((_GAP, row * height + _GAP), text, fill=_INK, font=font)
        sheet.paste(picture, (_GAP, row * height + _GAP + _TEXT))
    pen.line((0, height - 1, width, height - 1), fill=_INK)
    return sheet


def picture_of(index: Index, number: int) -> Image.Image:
    """Some frames of a member; grey, with the reason, where there is none."""
    path, key = index.paths[number], index.keys[number]
    try:
        if (Path(path) / "manifest.json").is_file():
            records = RecordSet(path)
            return _tile(draw_record(records[records.keys.index(key)], _FRAMES))
        return frames_of(_item(path), index.packing)
    except (MediaError, RecordError, ValueError, OSError) as error:
        sheet = Image.new("RGB", (_TILE * _FRAMES, _TILE), _NOTHING)
        font = ImageFont.load_default(_TEXT - 4)
        text = "\n".join(str(error)[i : i + 44] for i in range(0, 176, 44))
        ImageDraw.Draw(sheet).text((_GAP, _GAP), text, fill=_INK, font=font)
        return sheet


def frames_of(item: Item, packing: PackOptions) -> Image.Image:
    """Up to 3 whole frames of a file in a row."""
    side = packing.size
    whole = PackOptions(
        modes=("frames",),
        num_frames=_FRAMES,
        size=side,
        patch=packing.patch,
        budget=_FRAMES * (side // packing.patch) ** 2,
    )
    return _tile(draw_sequence(item_sequence(whole, item), (side, side), _FRAMES))


def _item(path: str) -> Item:
    """The file that a path of an index stands for."""
    if "#member=" in path:
        raise ValueError("it lies in a tar file")
    found = _FRAGMENT.fullmatch(path)
    (item,) = list_items([found["path"] if found else path])
    if found is None:
        return item
    end = found["end"]
    return Item(
        item.key,
        item.kind,
        item.path,
        item.source,
        start=float(found["start"]),
        end=None if end is None else float(end),
    )


def _tile(rgb_HW3: np.ndarray) -> Image.Image:
    picture = Image.fromarray(rgb_HW3)
    return picture.resize((max(1, round(picture.width * _TILE / picture.height)), _TILE))


def main(argv: list[str]) -> int:
    """The verb: returns 0, or 1 if the query or the index cannot be used."""
    args = _parser().parse_args(argv)
    try:
        if args.top < 1:
            raise ValueError(f"--top {args.top} must be at least 1")
        index = read_index(Path(args.index))
        if args.query is not None:
            item, query_D = embed_query(index, args.query, args.checkpoint)
            name, own = Path(args.query).name, None
        else:
            if args.key not in index.keys:
                raise ValueError(f"{args.index} has no key {args.key!r}")
            name, own = args.key, index.keys.index(args.key)
            item, query_D = None, index.features[own]
        hits = nearest(index, query_D, args.top, own)
        if args.out is not None:
            first = picture_of(index, own) if item is None else frames_of(item, index.packing)
            rows = [(f"query: {name}", first)]
            rows += [
                (f"{place}. {index.keys[n]}  ({cosine:.3f})", picture_of(index, n))
                for place, (n, cosine) in enumerate(hits, start=1)
            ]
            contact_sheet(rows).save(args.out)
    except (ValueError, MediaError) as error:
        print(f"codecvit search: {error}", file=sys.stderr)
        return 1
    print(_as_json(index, name, hits) if args.json else _as_text(index, hits))
    if args.out is not None:
        print(f"wrote {args.out}", file=sys.stderr)
    return 0


def _as_text(index: Index, hits: Sequence[Hit]) -> str:
    return "\n".join(f"{hit.cosine:.4f}  {index.keys[hit.number]}" for hit in hits)


def _as_json(index: Index, name: str, hits: Sequence[Hit]) -> str:
    found: list[dict[str, Any]] = [
        {"key": index.keys[n], "path": index.paths[n], "cosine": cosine} for n, cosine in hits
    ]
    return json.dumps({"query": name, "nearest": found}, indent=1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit search",
        description="The members of a feature file that lie nearest to a clip or picture.",
    )
    parser.add_argument("--index", required=True, help="what `codecvit embed` wrote")
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--query", metavar="FILE", help="a video or image")
    query.add_argument("--key", help="a member of the index")
    parser.add_argument(
        "--checkpoint", help="the encoder of the index (default: where it was when it was made)"
    )
    parser.add_argument("--top", type=int, default=10, help="neighbours (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="PNG", help="a sheet of query and neighbours")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
