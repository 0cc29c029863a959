"""KIND:PATH -> a source of pairs."""

from __future__ import annotations

from ...files import PathOrUrl
from ..records import RecordSet
from .captions import open_captions
from .columns import COLUMN_PRESETS, Columns
from .layouts import LAYOUTS, open_layout
from .members import matching, open_folder, open_webdataset
from .records import RecordPairs
from .several import SeveralPairs
from .source import PairSource
from .table import TablePairs
from .tfds import TfdsPairs

SPECS = (
    "records:DIR, webdataset:GLOB, table:GLOB, folder:DIR, tfds:DIR[#SPLIT], "
    "coco-karpathy:ROOT[#SPLIT], coco2014:ROOT, coco2017:ROOT, flickr30k:ROOT[#SPLIT], "
    "flickr30k-token:ROOT[#FILE]"
)


def open_pairs(
    spec: str,
    *,
    preset: str = "default",
    columns: str = "",
    captions: PathOrUrl | None = None,
    join: str = "key",
) -> PairSource:
    """Opens pairs for reading at any place.

    Args:
      spec: `records:DIR`, a record set with texts; `webdataset:GLOB`, uncompressed tars;
        `table:GLOB`, one or several .jsonl or .parquet; `folder:DIR`, pictures with texts beside
        them; `tfds:DIR` or `tfds:DIR#SPLIT` (default: train); `coco-karpathy:ROOT`,
        `coco-karpathy:ROOT#SPLIT` (default: test) and the other keys of `layouts.LAYOUTS`.
      preset: name of COLUMN_PRESETS; of records that carry texts it says nothing.
      columns: other columns than those of the preset, as `Columns.replaced` reads them.
      captions: one or several .jsonl or .parquet of texts that belong to the pairs...
      join: ...with the same `key`, or the same `sha256`: of the picture's bytes, or what the field
        sha256 of a pair says (pictures that a downloader made smaller have it from before).

    Returns:
      The source.

    Raises:
      ValueError: there is nothing of that kind at that place.
      RecordError: a record set is not finished or is damaged.
    """
    if preset not in COLUMN_PRESETS:
        raise ValueError(f"preset = {preset!r} must be one of {', '.join(COLUMN_PRESETS)}")
    chosen = COLUMN_PRESETS[preset].replaced(columns)
    kind, colon, path = spec.partition(":")
    if not colon or not path:
        raise ValueError(f"pairs = {spec!r} must be one of {SPECS}")
    source = _open(kind, path, chosen, preset != "default", bool(columns or captions))
    if captions is not None:
        source.captions = open_captions(captions, join, chosen)
    return source


def _open(kind: str, path: str, columns: Columns, preset: bool, named: bool) -> PairSource:
    """The source of a kind; the columns are those of a preset that was asked for, or named."""
    if kind == "records":
        records = RecordSet(path)
        # Texts of records have their roles, whatever columns they came from.
        asked = named or (preset and not records.manifest.get("texts"))
        return RecordPairs(records, columns if asked else None)
    if kind == "webdataset":
        return open_webdataset(path, columns)
    if kind == "folder":
        return open_folder(path, columns)
    if kind == "table":
        tables = [TablePairs(found, columns) for found in matching(path) or [path]]
        return tables[0] if len(tables) == 1 else SeveralPairs(f"table:{path}", tables)
    if kind == "tfds":
        folder, _, split = path.partition("#")
        return TfdsPairs(folder, split or "train", columns)
    if kind in LAYOUTS:
        root, _, split = path.partition("#")
        asked = columns if preset or named else COLUMN_PRESETS["coco"]
        return open_layout(kind, root, split, asked)
    raise ValueError(f"pairs = {kind}:{path}: {kind!r} is none of {SPECS}")
