"""`codecvit pack`: videos and images -> record sets of patch sequences, one set per mode.

Workers only share the files out, and one writer puts the records of a shard down in key order: any
number of workers, of array jobs and of machines gives the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import av

from ..codec.arguments import add_selection_arguments, add_view_arguments, view_options
from ..codec.config import selection_config
from ..codec.selection import MODES
from ..files import PathOrUrl, join
from ..jobs import (
    Failure,
    JobOptions,
    Summary,
    add_job_arguments,
    job_options,
    run_jobs,
    shard_plan,
)
from .packing import Packed, PackOptions, pack_item
from .parts import PartialSet
from .progress import progress
from .record import STORAGES, Storage
from .records import WIDE_GAP
from .sources import Item, list_items

_SHOWN_FAILURES = 10
# What a file may do to us, besides MediaError; anything else is a bug and stops the run.
_EXPECTED = (ValueError, OSError, MemoryError, av.FFmpegError)


class Packing(NamedTuple):
    """What a run of `pack` did.

    Attributes:
      manifests: of the finished sets by folder (their mode, if not told otherwise), also of those
        that were there already. A set without any record is left out; its failures.jsonl tells why.
      unfinished: sets whose other shards are left to other jobs.
      summary: counts the files that fall to this job.
    """

    manifests: dict[str, dict[str, Any]]
    unfinished: list[str]
    summary: Summary


def pack(
    items: Sequence[Item],
    out: PathOrUrl,
    options: PackOptions | Mapping[str, PackOptions],
    *,
    jobs: JobOptions,
    per_shard: int = 4096,
    overwrite: bool = False,
) -> Packing:
    """Packs items into OUT/<mode>/, or into other folders.

    Args:
      items: as `list_items` gives them.
      out: folder or URL of the record sets.
      options: what to make; or, for sets that differ in more than their mode, what to make in each
        folder of `out`: of videos alone, one mode each.
      jobs: how to go about it.
      per_shard: most files of a shard.
      overwrite: replace sets that were made of other files or with other options.

    Returns:
      What came out.

    Raises:
      ValueError: a set of other files or options is in the way.
    """
    sets: dict[str, PartialSet] = {}
    units, mine = [], []
    by_kind = _wanted(options)
    assert {item.kind for item in items} <= by_kind.keys(), "images go by the name of their mode"
    for kind, wanted in by_kind.items():
        files = [item for item in items if item.kind == kind]
        plan = shard_plan(len(files), per_shard)
        of_kind = {}
        for name, of_set in wanted.items() if files else ():
            description = of_set.describe(of_set.modes[0] if kind == "video" else "image")
            description["fingerprint"] = _fingerprint(description, files, per_shard)
            folder = join(out, name)
            of_kind[name] = PartialSet(folder, description, plan, jobs.shard, overwrite)
        sets |= of_kind
        for number in filter(jobs.shard.takes, range(len(plan))):
            of_shard = [files[place] for place in plan[number]]
            lacking = {name: part for name, part in of_kind.items() if number in part.todo}
            mine += of_shard
            if lacking:
                units.append(_Unit(number, of_shard, lacking))
    for part_set in sets.values():
        if part_set.manifest is not None:
            print(f"{part_set.folder}: packed already, nothing to do")
    failed = _work(units, by_kind, jobs)

    for part_set in sets.values():
        failed |= part_set.failed
    worked_on = {item.key for unit in units for item in unit.items}
    failures = sum(item.key in failed for item in mine)
    ok = len(worked_on - failed)
    summary = Summary(ok, len(mine) - ok - failures, failures)

    manifests, unfinished = {}, []
    for name, part_set in sets.items():
        if part_set.manifest is None and not finish_set(part_set):
            unfinished.append(name)
        if part_set.manifest is not None:
            manifests[name] = part_set.manifest
    return Packing(manifests, unfinished, summary)


def main(argv: list[str]) -> int:
    """The verb: returns 0, or 1 if too much failed, or 2 for options that cannot work."""
    args = _parser().parse_args(argv)
    try:
        jobs = job_options(args)
        if args.draws > 1 and args.mode == "codec":
            raise ValueError(
                f"draws = {args.draws}: mode codec draws nothing, add frames or collage"
            )
        options = PackOptions(
            modes=tuple(args.mode.split(",")),
            draws=args.draws,
            budget=args.budget,
            **view_options(args),
            selection=selection_config(args.preset, args.set),
            storage=Storage(args.storage, args.quality),
            picture_side=args.picture_side,
            seed=0 if args.seed is None and args.draws > 1 else args.seed,
        )
        items = list_items(args.inputs, class_folders=args.labels == "folders")
        done = pack(
            items,
            args.out,
            options,
            jobs=jobs,
            per_shard=args.files_per_shard,
            overwrite=args.overwrite,
        )
    except ValueError as error:
        print(f"codecvit pack: {error}", file=sys.stderr)
        return 2
    for mode, manifest in done.manifests.items():
        print(describe_set(join(args.out, mode), manifest))
    print(f"files: {done.summary}")
    if not done.manifests and not done.unfinished:
        print("codecvit pack: nothing could be packed", file=sys.stderr)
    return jobs.exit_status(done.summary)


class _Unit(NamedTuple):
    """One shard of files, packed in one go for all sets that lack it."""

    number: int
    items: list[Item]
    sets: dict[str, PartialSet]


def _wanted(options: PackOptions | Mapping[str, PackOptions]) -> dict[str, dict[str, PackOptions]]:
    """By kind of file the record sets to make, by folder."""
    if not isinstance(options, PackOptions):
        return {"video": dict(options)}
    by_mode = {mode: dataclasses.replace(options, modes=(mode,)) for mode in options.modes}
    return {"video": by_mode, "image": {"image": options}}


def _work(
    units: Sequence[_Unit], by_kind: Mapping[str, Mapping[str, PackOptions]], jobs: JobOptions
) -> set[str]:
    """Packs all units; returns the keys of the files that failed."""
    tasks = ((tuple(unit.sets), item) for unit in units for item in unit.items)
    results = run_jobs(
        functools.partial(_pack_task, by_kind),
        tasks,
        workers=jobs.workers,
        runner=jobs.runner,
        time_limit=jobs.time_limit,
        expected=_EXPECTED,
    )
    failures = []
    total = sum(len(unit.items) for unit in units)
    with contextlib.closing(progress(results, total, "packed")) as results:
        for unit in units:
            failures += _pack_unit(unit, itertools.islice(results, len(unit.items)))
    print_failures(failures)
    return {failure["key"] for failure in failures}


def print_failures(failures: Sequence[Mapping[str, str]]) -> None:
    """Prints the first of the files that gave no record."""
    for failure in failures[:_SHOWN_FAILURES]:
        source = failure["source"]
        print(f"failed: {source}: {failure['reason'].removeprefix(f'{source}: ')}", file=sys.stderr)
    if len(failures) > _SHOWN_FAILURES:
        print(
            f"failed: {len(failures) - _SHOWN_FAILURES} more, see failures.jsonl of the sets",
            file=sys.stderr,
        )


def _pack_task(
    by_kind: Mapping[str, Mapping[str, PackOptions]], task: tuple[tuple[str, ...], Item]
) -> Mapping[str, Sequence[Packed]]:
    """The records of one file for the sets that lack it."""
    names, item = task
    return pack_item({name: by_kind[item.kind][name] for name in names}, item)


def _pack_unit(
    unit: _Unit, results: Iterable[tuple[Any, Mapping[str, Sequence[Packed]] | Failure]]
) -> list[dict[str, str]]:
    """Writes one shard of every set; returns its failures."""
    failures = []
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(part_set.writer(unit.number))
            for name, part_set in unit.sets.items()
        }
        for (_, item), result in results:
            if isinstance(result, Failure):
                failure = {"key": item.key, "source": item.source, **dataclasses.asdict(result)}
                failures.append(failure)
            for name, writer in writers.items():
                if isinstance(result, Failure):
                    writer.fail(failure)
                    continue
                for packed in result[name]:
                    writer.write(packed.data, packed.entry)
        for writer in writers.values():
            writer.close()
    return failures


def finish_set(part_set: PartialSet) -> bool:
    """Finishes a set if all of its shards are there; returns whether they are."""
    done = part_set.finish()
    if done < part_set.num_shards:
        print(
            f"{part_set.folder}: {done} of {part_set.num_shards} shards are done; the job that "
            "does the last one finishes the set"
        )
    return done == part_set.num_shards


def _fingerprint(description: Mapping[str, Any], items: Sequence[Item], per_shard: int) -> str:
    """Hash of all that decides a set: options, shard size, and name, labels and size of each file.

    Folders above an input and times of files are left out, so that moved data stays packed.
    """
    files = [
        [item.key, item.source, item.labels, item.start, item.end, item.size, item.rate]
        for item in items
    ]
    text = json.dumps([description, per_shard, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def describe_set(folder: str, manifest: Mapping[str, Any]) -> str:
    """What is printed of a finished set."""
    size = sum(shard["bytes"] for shard in manifest["shards"]) / 1e6
    text = (
        f"{folder}: {manifest['records']} records, {manifest['tokens']['sum']} patches, "
        f"{size:.1f} MB in {len(manifest['shards'])} shards, {manifest['failures']} files failed"
    )
    if manifest["mode"] == "codec" and manifest["wide_gaps"]:
        text += (
            f"\n  warning: in {manifest['wide_gaps']} records samples lie more than {WIDE_GAP:g} s "
            "apart, where nearly everything counts as new: more samples in groups (--set "
            "policy=groups), or --set pair_dt=0.2"
        )
    return text


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
        help="media file, folder, .csv (path[,start,end], further columns are labels) or .tar; "
        "a path or a URL such as gs://bucket/videos",
    )
    parser.add_argument("--out", required=True, help="folder or URL of the record sets")
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
    files.add_argument(
        "--picture-side",
        type=int,
        default=defaults.picture_side,
        metavar="N",
        help="images are kept as files, their short side scaled down to at most N pixels",
    )
    files.add_argument(
        "--files-per-shard", type=int, default=4096, help="most files of a shard (%(default)s)"
    )
    files.add_argument("--overwrite", action="store_true", help="replace sets that are in the way")
    add_job_arguments(parser)
    return parser
