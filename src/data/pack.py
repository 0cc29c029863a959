"""`codecvit pack`: videos and images -> record sets of patch sequences, one set per mode.

Workers only share the files out, and one writer puts the records down in key order: any number of
workers gives the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av

from ..codec.arguments import add_selection_arguments, add_view_arguments
from ..codec.config import selection_config
from ..codec.selection import MODES
from ..jobs import Failure, run_jobs, shard_plan
from .packing import Packed, PackOptions, pack_item
from .progress import progress
from .record import STORAGES, Storage
from .records import RecordError, RecordSet, RecordWriter
from .sources import Item, list_items

_SHOWN_FAILURES = 10
# What a file may do to us, besides MediaError; anything else is a bug and stops the run.
_EXPECTED = (ValueError, OSError, MemoryError, av.FFmpegError)


def pack(
    items: Sequence[Item],
    out: Path,
    options: PackOptions,
    *,
    workers: int = 0,
    per_shard: int = 4096,
    overwrite: bool = False,
) -> dict[str, RecordSet]:
    """Packs items into OUT/<mode>/.

    Args:
      items: as `list_items` gives them.
      out: folder of the record sets.
      options: what to make.
      workers: processes; 0 works in this one.
      per_shard: most records of a shard.
      overwrite: replace sets that were made of other files or with other options.

    Returns:
      The finished sets by mode, also those that were there already. A mode without any record is
      left out; its failures.jsonl tells why.

    Raises:
      ValueError: a set of other files or options is in the way.
    """
    done, todo = {}, {}
    for mode in (*options.modes, "image"):
        mine = [item for item in items if _takes(mode, item)]
        if not mine:
            continue
        description = options.describe(mode)
        fingerprint = _fingerprint(description, mine, per_shard)
        existing = None if overwrite else _existing(out / mode, fingerprint)
        if existing is None:
            todo[mode] = {**description, "fingerprint": fingerprint}
        else:
            print(f"{out / mode}: packed already, nothing to do")
            done[mode] = existing
    if todo:
        done |= _pack_modes(items, out, options, todo, workers, per_shard)
    return done


def main(argv: list[str]) -> int:
    """The verb: returns 0, or 1 if nothing could be packed, or 2 for options that cannot work."""
    args = _parser().parse_args(argv)
    try:
        if args.draws > 1 and args.mode == "codec":
            raise ValueError(
                f"draws = {args.draws}: mode codec draws nothing, add frames or collage"
            )
        options = PackOptions(
            modes=tuple(args.mode.split(",")),
            draws=args.draws,
            num_frames=args.num_frames,
            sampling=args.sampling,
            geometry=args.geometry,
            budget=args.budget,
            size=args.size,
            patch=args.patch,
            selection=selection_config(args.preset, args.set),
            storage=Storage(args.storage, args.quality),
            seed=0 if args.seed is None and args.draws > 1 else args.seed,
        )
        items = list_items(args.inputs, class_folders=args.labels == "folders")
        sets = pack(
            items,
            args.out,
            options,
            workers=args.workers,
            per_shard=args.records_per_shard,
            overwrite=args.overwrite,
        )
    except ValueError as error:
        print(f"codecvit pack: {error}", file=sys.stderr)
        return 2
    for record_set in sets.values():
        print(_summary(record_set))
    if not sets:
        print("codecvit pack: nothing could be packed", file=sys.stderr)
        return 1
    return 0


class _Output:
    """One record set in the making; takes the results of its files in key order."""

    def __init__(
        self, folder: Path, description: Mapping[str, Any], files: int, draws: int, per_shard: int
    ) -> None:
        self.folder = folder
        self.mode = description["mode"]
        self.writer = RecordWriter(folder, shard_plan(files * draws, per_shard))
        self._description = description
        self._draws = draws
        self._files = 0
        self._records = 0
        self._failures: list[dict[str, str]] = []

    def add(self, item: Item, result: Mapping[str, Sequence[Packed]] | Failure) -> None:
        place = self._files * self._draws
        self._files += 1
        if isinstance(result, Failure):
            failure = {"key": item.key, "source": item.source}
            self._failures.append({**failure, "kind": result.kind, "reason": result.reason})
            return
        for draw, packed in enumerate(result[self.mode]):
            self.writer.write(place + draw, packed.data, packed.entry)
            self._records += 1

    def finish(self) -> RecordSet | None:
        """The set, or None if no file gave a record: then only failures.jsonl is left."""
        if self._records:
            return self.writer.finish(self._description, self._failures)
        self.writer.give_up(self._failures)
        return None


def _pack_modes(
    items: Sequence[Item],
    out: Path,
    options: PackOptions,
    todo: Mapping[str, Mapping[str, Any]],
    workers: int,
    per_shard: int,
) -> dict[str, RecordSet]:
    """Packs the modes of `todo` (mode -> description) in one pass over their files."""
    items = [item for item in items if any(_takes(mode, item) for mode in todo)]
    wanted = tuple(mode for mode in options.modes if mode in todo)
    job = functools.partial(pack_item, dataclasses.replace(options, modes=wanted or options.modes))
    failures = []
    with contextlib.ExitStack() as stack:
        outputs = []
        for mode, description in todo.items():
            files = sum(_takes(mode, item) for item in items)
            draws = options.draws_of(mode)
            output = _Output(out / mode, description, files, draws, per_shard)
            stack.enter_context(output.writer)
            outputs.append(output)
        results = run_jobs(job, items, workers=workers, expected=_EXPECTED)
        for item, result in progress(results, len(items), "packed"):
            for output in outputs:
                if _takes(output.mode, item):
                    output.add(item, result)
            if isinstance(result, Failure):
                failures.append(result.reason)
        sets = {output.mode: output.finish() for output in outputs}
    for reason in failures[:_SHOWN_FAILURES]:
        print(f"failed: {reason}", file=sys.stderr)
    if len(failures) > _SHOWN_FAILURES:
        more = len(failures) - _SHOWN_FAILURES
        print(f"failed: {more} more, see failures.jsonl in {out}", file=sys.stderr)
    return {mode: record_set for mode, record_set in sets.items() if record_set is not None}


def _takes(mode: str, item: Item) -> bool:
    return (mode == "image") == (item.kind == "image")


def _fingerprint(description: Mapping[str, Any], items: Sequence[Item], per_shard: int) -> str:
    """Hash of all that decides a set: options, shard size, and name, labels and size of each file.

    Folders above an input and times of files are left out, so that moved data stays packed.
    """
    files = [
        [item.key, item.source, item.labels, item.start, item.end, item.size] for item in items
    ]
    text = json.dumps([description, per_shard, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _existing(folder: Path, fingerprint: str) -> RecordSet | None:
    """The finished set in a folder if it is the one wanted, None if there is none."""
    if not (folder / "manifest.json").is_file():
        return None
    record_set = RecordSet(folder)
    if record_set.manifest["fingerprint"] != fingerprint:
        raise RecordError(
            f"{folder} holds a set of other files or options: choose another --out or give "
            "--overwrite"
        )
    return record_set


def _summary(record_set: RecordSet) -> str:
    manifest = record_set.manifest
    size = sum(shard["bytes"] for shard in manifest["shards"]) / 1e6
    return (
        f"{record_set.path}: {len(record_set)} records, {manifest['tokens']['sum']} patches, "
        f"{size:.1f} MB in {len(manifest['shards'])} shards, {manifest['failures']} files failed"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit pack",
        description="Turns videos and images into record sets of patch sequences, "
        "one set per mode in OUT/<mode> (images: OUT/image).",
        epilog="A set that was packed from the same files with the same options is left as it is.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="media file, folder, .csv (path[,start,end], further columns are labels) or .tar",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the record sets")
    parser.add_argument(
        "--mode",
        default="codec",
        help=f"comma list of {', '.join(MODES)}; all from one decode (default: %(default)s)",
    )
    defaults = PackOptions()
    add_view_arguments(parser)
    records = parser.add_argument_group("records")
    records.add_argument(
        "--budget", type=int, default=defaults.budget, help="most patches of a record"
    )
    records.add_argument(
        "--draws", type=int, default=1, help="records per video, frames and collage"
    )
    records.add_argument(
        "--seed", type=int, help="draw the frames of frames and collage (default: fixed frames)"
    )
    add_selection_arguments(parser)
    files = parser.add_argument_group("files")
    files.add_argument(
        "--labels",
        choices=("none", "folders"),
        default="none",
        help="folders: the first folder below an input is the class, in column `label`",
    )
    files.add_argument("--storage", choices=STORAGES, default=defaults.storage.kind)
    files.add_argument("--quality", type=int, default=defaults.storage.quality, help="of JPEG")
    files.add_argument("--records-per-shard", type=int, default=4096)
    files.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes; 0 works in this one (default: one per core)",
    )
    files.add_argument("--overwrite", action="store_true", help="replace sets that are in the way")
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    return parser
