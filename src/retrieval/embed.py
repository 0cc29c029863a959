"""`codecvit embed`: videos, images and record sets -> a file of embeddings.

    codecvit embed clips/ photo.jpg --checkpoint runs/L --out features.npz
    codecvit search --index features.npz --query clip.mp4

Files are packed in worker processes and embedded in batches of like length. A run that was killed
goes on where it stopped when it is repeated: what is done lies in OUT.parts until all is.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..codec.arguments import add_selection_arguments, add_view_arguments, view_options
from ..codec.config import selection_config
from ..codec.selection import MODES
from ..data.packing import PackOptions, item_sequence
from ..data.progress import progress
from ..data.records import RecordSet, json_lines
from ..data.sources import Item, list_items
from ..files import write_atomic
from ..jobs import Failure, JobOptions, Summary, add_job_arguments, job_options, run_jobs

# Files or records between two saves.
PART_SIZE = 256
RECORD_BATCH = 32


class Unit(NamedTuple):
    """What is embedded and saved at once: some files, or some records of a set.

    Attributes:
      keys: of its members.
      items: the files; empty for records.
      records: the record set, or None.
      numbers: of the records.
    """

    keys: list[str]
    items: list[Item]
    records: RecordSet | None = None
    numbers: range = range(0)


class Rows(NamedTuple):
    """What came of a unit.

    Attributes:
      keys, paths: of the rows.
      features: float32 [rows, D].
      failures: of the members that gave none: key, source, kind, reason.
    """

    keys: list[str]
    paths: list[str]
    features: np.ndarray
    failures: list[dict[str, str]]


def list_units(inputs: Sequence[str]) -> list[Unit]:
    """Files and records in parts of PART_SIZE.

    Args:
      inputs: as `data.sources.list_items` takes them, and folders of record sets.

    Raises:
      ValueError: an input is missing or empty, or two members have one key.
    """
    sets = [RecordSet(path) for path in inputs if (Path(path) / "manifest.json").is_file()]
    files = [path for path in inputs if not (Path(path) / "manifest.json").is_file()]
    items = sorted(list_items(files), key=lambda item: item.key) if files else []
    units = []
    for start in range(0, len(items), PART_SIZE):
        part = items[start : start + PART_SIZE]
        units.append(Unit([item.key for item in part], part))
    for records in sets:
        for start in range(0, len(records), PART_SIZE):
            numbers = range(start, min(start + PART_SIZE, len(records)))
            units.append(Unit([records.keys[i] for i in numbers], [], records, numbers))
    keys = [key for unit in units for key in unit.keys]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"two inputs have the key {twice!r}: embed them into files of their own")
    return units


def embed(
    units: Sequence[Unit],
    checkpoint: str,
    out: Path,
    options: PackOptions,
    jobs: JobOptions,
    *,
    ema: bool = False,
    overwrite: bool = False,
) -> Summary:
    """Embeds files and records and writes one feature file.

    Args:
      units: as `list_units` gives them.
      checkpoint: what `codecvit.load` takes.
      out: the feature file, .npz or .parquet. OUT.failures.jsonl names what could not be read.
      options: how files are packed; one mode.
      jobs: workers and time limit.
      ema: of a checkpoint, the moving average of the parameters.
      overwrite: replace a feature file of other inputs, encoder or options.

    Returns:
      How many came out, were there already, and failed.

    Raises:
      ValueError: options or encoder don't fit, another feature file is in the way, or nothing at
        all could be embedded.
    """
    # Imported here: --help needs no jax.
    import jax

    from ..convert.load import load
    from .index import INDEX_VERSION, Index, encoder_hash, packing_of, read_index, write_index

    encoder = load(checkpoint, ema=ema)
    has_files = any(unit.items for unit in units)
    about = {
        "version": INDEX_VERSION,
        "encoder": str(checkpoint),
        "encoder_sha256": encoder_hash(encoder),
        "packing": packing_of(options) if has_files else None,
    }
    about["fingerprint"] = _fingerprint(about, units)
    parts, failures_file = Path(f"{out}.parts"), Path(f"{out}.failures.jsonl")
    if out.exists() and not overwrite:
        if read_index(out).about.get("fingerprint") == about["fingerprint"]:
            print(f"{out} is there already, nothing to do")
            return Summary(0, sum(len(unit.keys) for unit in units), 0)
        raise ValueError(
            f"{out} was made of other files, by another encoder or with other options: name "
            "another file, or replace it with --overwrite"
        )
    if parts.exists() and _read_text(parts / "about.json") != about["fingerprint"]:
        if not overwrite:
            raise ValueError(
                f"{parts} is the beginning of another run: go on with its inputs and options, or "
                "drop it with --overwrite"
            )
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    write_atomic(parts / "about.json", about["fingerprint"].encode())

    names = [parts / f"{number:06d}.npz" for number in range(len(units))]
    todo = [(unit, name) for unit, name in zip(units, names, strict=True) if not name.exists()]
    devices = jax.local_devices()
    found = _embed_units([unit for unit, _ in todo], encoder, devices, options, jobs)
    for (_, name), rows in zip(todo, progress(found, len(todo), "embedding"), strict=True):
        write_atomic(name, _part_bytes(rows))
    done = [_read_part(name) for name in names]

    failures = [failure for rows in done for failure in rows.failures]
    failures_file.unlink(missing_ok=True)
    if failures:
        write_atomic(failures_file, json_lines(failures))
    ok = sum(len(rows.keys) for rows in done)
    new = {name for _, name in todo}
    earlier = sum(len(r.keys) for r, name in zip(done, names, strict=True) if name not in new)
    if ok:
        features = np.concatenate([rows.features for rows in done if rows.keys])
        keys = [key for rows in done for key in rows.keys]
        paths = [path for rows in done for path in rows.paths]
        write_index(out, Index(features, keys, paths, about))
        shutil.rmtree(parts)
    return Summary(ok - earlier, earlier, len(failures))


def _embed_units(
    units: Sequence[Unit],
    encoder: Any,
    devices: Sequence[Any],
    options: PackOptions,
    jobs: JobOptions,
) -> Iterator[Rows]:
    """The rows of each unit, in order; files of all units are packed by one crew of workers."""
    from ..cluster.features import embeddings

    items = (item for unit in units for item in unit.items)
    pack = functools.partial(item_sequence, options)
    packed = run_jobs(
        pack, items, workers=jobs.workers, runner=jobs.runner, time_limit=jobs.time_limit
    )
    for unit in units:
        if unit.records is None:
            results = [next(packed) for _ in unit.items]
            yield _rows_of_files(results, encoder, devices)
            continue
        found = embeddings(
            unit.records, encoder.embed, RECORD_BATCH, silent=True, only=list(unit.numbers)
        )
        source = str(unit.records.path)
        failures = [
            {"key": key, "source": source, "kind": "RecordError", "reason": "unreadable record"}
            for key, readable in zip(unit.keys, found.readable_N, strict=True)
            if not readable
        ]
        keys = [k for k, readable in zip(unit.keys, found.readable_N, strict=True) if readable]
        yield Rows(keys, [source] * len(keys), found.rows_ND[found.readable_N], failures)


def _rows_of_files(
    results: Sequence[tuple[Item, Any]], encoder: Any, devices: Sequence[Any]
) -> Rows:
    read = [(item, found) for item, found in results if not isinstance(found, Failure)]
    failures = [
        {"key": item.key, "source": item.source, "kind": found.kind, "reason": found.reason}
        for item, found in results
        if isinstance(found, Failure)
    ]
    features = encoder.pooled([sequence for _, sequence in read], devices)
    return Rows(
        [item.key for item, _ in read],
        [media_path(item) for item, _ in read],
        features,
        failures,
    )


def media_path(item: Item) -> str:
    """Where an item lies; a part of a file as a media fragment (W3C): clip.mp4#t=1.5,4."""
    if item.member is not None:
        return f"{item.path}#member={item.source}"
    if item.start is None and item.end is None:
        return item.path
    end = "" if item.end is None else f",{item.end:g}"
    return f"{item.path}#t={item.start or 0:g}{end}"


def _part_bytes(rows: Rows) -> bytes:
    file = io.BytesIO()
    np.savez(
        file,
        features=rows.features,
        keys=np.array(rows.keys, np.str_),
        paths=np.array(rows.paths, np.str_),
        failures=np.array(json.dumps(rows.failures)),
    )
    return file.getvalue()


def _read_part(path: Path) -> Rows:
    with np.load(path, allow_pickle=False) as part:
        failures = json.loads(str(part["failures"]))
        return Rows(part["keys"].tolist(), part["paths"].tolist(), part["features"], failures)


def _fingerprint(about: dict[str, Any], units: Sequence[Unit]) -> str:
    """Changes with encoder, options and members; times of files are left out."""
    files = [[item.key, item.size, item.start, item.end] for unit in units for item in unit.items]
    records = [[u.records.shard_hash, *u.keys] for u in units if u.records is not None]
    known = {key: about[key] for key in ("version", "encoder_sha256", "packing")}
    text = json.dumps([known, files, records], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def main(argv: list[str]) -> int:
    """The verb: returns 0, or 1 if too much failed, or 2 for options that cannot work."""
    args = _parser().parse_args(argv)
    try:
        jobs = job_options(args)
        options = PackOptions(
            modes=(args.mode,),
            budget=args.budget,
            **view_options(args),
            selection=selection_config(args.preset, args.set),
        )
        if options.selection.policy == "groups":
            raise ValueError("policy = 'groups' gives several sequences of a file: choose another")
        if jobs.shard.count > 1:
            raise ValueError("--shard: embed parts of the inputs into files of their own")
        units = list_units(args.inputs)
        out = Path(args.out)
        summary = embed(
            units, args.checkpoint, out, options, jobs, ema=args.ema, overwrite=args.overwrite
        )
    except ValueError as error:
        print(f"codecvit embed: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {summary}")
    if summary.failed:
        print(f"what failed, and why: {args.out}.failures.jsonl", file=sys.stderr)
    return jobs.exit_status(summary)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit embed",
        description="Embeds videos, images and record sets by a trained encoder. A run that was "
        "killed goes on where it stopped.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="media file, folder, .csv (path[,start,end]), .tar, a URL of these, or a record set",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="work directory, checkpoint or Hugging Face folder: what codecvit.load takes",
    )
    parser.add_argument("--out", required=True, help="features.npz or features.parquet")
    parser.add_argument("--ema", action="store_true", help="the moving average of the parameters")
    parser.add_argument("--mode", choices=MODES, default="codec", help="default: %(default)s")
    parser.add_argument("--budget", type=int, default=PackOptions().budget, help="most patches")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the way")
    add_view_arguments(parser)
    add_selection_arguments(parser)
    add_job_arguments(parser)
    return parser
