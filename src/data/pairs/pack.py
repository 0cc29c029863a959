"""`codecvit pack-pairs`: any source of pairs -> a record set whose records carry texts.

As with `codecvit pack`, workers only share the pairs out and one writer puts the records of a shard
down in key order: any number of workers and of array jobs gives the same bytes.
"""

from __future__ import annotations

import argparse
import collections
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

from ...codec.arguments import add_view_arguments, view_options
from ...codec.config import selection_config
from ...codec.errors import MediaError
from ...codec.selection import MODES
from ...files import PathOrUrl, join
from ...jobs import (
    Failure,
    JobOptions,
    Summary,
    add_job_arguments,
    job_options,
    run_jobs,
    shard_plan,
)
from ..pack import describe_set, finish_set, print_failures
from ..packing import Packed, PackOptions, pack_item, pack_picture
from ..parts import PartialSet
from ..progress import progress
from ..record import STORAGES, Storage, with_texts
from ..sources import Item
from .captions import JOINS
from .columns import COLUMN_PRESETS
from .open import SPECS, open_pairs
from .records import RecordPairs
from .source import KINDS, PairError, PairSource

_EXPECTED = (ValueError, OSError, MemoryError, av.FFmpegError)
# What `write_set` counts anew, or what belongs to the set that was read.
_COUNTED = {
    "classes",
    "failures",
    "fingerprint",
    "label_columns",
    "records",
    "shards",
    "texts",
    "tokens",
    "version",
    "wide_gaps",
}


class PairsPacked(NamedTuple):
    """What a run of `pack_pairs` did.

    Attributes:
      folder: of the set.
      manifest: of the set, or None if other jobs have to finish it, or nothing could be packed.
      summary: counts the pairs that fall to this job.
      kinds: how many of the failed ones for which kind of reason.
    """

    folder: str
    manifest: dict[str, Any] | None
    summary: Summary
    kinds: dict[str, int]


def pack_pairs(
    source: PairSource,
    out: PathOrUrl,
    options: PackOptions,
    *,
    video: bool = False,
    jobs: JobOptions,
    per_shard: int = 4096,
    overwrite: bool = False,
) -> PairsPacked:
    """Packs pairs into OUT/image, or OUT/MODE for videos and for records of patches.

    Args:
      source: the pairs. Records keep all that they hold, and get the texts.
      out: folder or URL.
      options: of the views and of what is stored; one mode.
      video: pack the videos of the source instead of its pictures.
      jobs: how to go about it.
      per_shard: most pairs of a shard.
      overwrite: replace a set that was made of other pairs or with other options.

    Returns:
      What came out.

    Raises:
      ValueError: a set of other pairs or options is in the way, or the source holds no pairs or no
        videos.
    """
    description = _describe(source, options, video)
    keys = source.keys
    if not keys:
        raise ValueError(f"{source.name} holds no pairs")
    order = sorted(range(len(keys)), key=keys.__getitem__)
    plan = shard_plan(len(order), per_shard)
    description["fingerprint"] = _fingerprint(description, source, per_shard)
    folder = join(out, description["mode"])
    part_set = PartialSet(folder, description, plan, jobs.shard, overwrite)
    if part_set.manifest is not None:
        print(f"{folder}: packed already, nothing to do")
    mine = [
        order[place] for n, places in enumerate(plan) if jobs.shard.takes(n) for place in places
    ]
    units = [(number, [order[place] for place in plan[number]]) for number in part_set.todo]
    _work(part_set, units, source, options, video, jobs)
    if part_set.manifest is None:
        finish_set(part_set)
    worked_on = {index for _, unit in units for index in unit}
    failures = _failures(part_set, {keys[index] for index in mine})
    failed = {failure["key"] for failure in failures}
    ok = sum(keys[index] not in failed for index in worked_on)
    summary = Summary(ok, len(mine) - ok - len(failed), len(failed))
    kinds = collections.Counter(failure["kind"] for failure in failures)
    return PairsPacked(folder, part_set.manifest, summary, dict(kinds))


def main(argv: list[str]) -> int:
    """The verb: returns 0, or 1 if too much failed, or 2 for options that cannot work."""
    args = _parser().parse_args(argv)
    try:
        jobs = job_options(args)
        options = PackOptions(
            modes=(args.mode,),
            budget=args.budget,
            **view_options(args),
            selection=selection_config("default", args.set),
            storage=Storage(args.storage, args.quality),
            picture_side=args.picture_side,
        )
        source = open_pairs(
            args.source,
            preset=args.preset,
            columns=args.columns,
            captions=args.captions,
            join=args.join,
        )
        done = pack_pairs(
            source,
            args.out,
            options,
            video=args.video,
            jobs=jobs,
            per_shard=args.pairs_per_shard,
            overwrite=args.overwrite,
        )
    except ValueError as error:
        print(f"codecvit pack-pairs: {error}", file=sys.stderr)
        return 2
    if done.manifest is not None:
        print(describe_set(done.folder, done.manifest))
        counts = ", ".join(f"{n} {count}" for n, count in done.manifest["texts"].items())
        print(f"  texts: {counts}")
    print(f"pairs: {done.summary}")
    if done.kinds:
        known = [*KINDS, *sorted(done.kinds.keys() - set(KINDS))]
        print("  failed: " + ", ".join(f"{k} {done.kinds[k]}" for k in known if k in done.kinds))
    if done.summary.failed and not (done.summary.ok or done.summary.skipped):
        print("codecvit pack-pairs: nothing could be packed", file=sys.stderr)
    return jobs.exit_status(done.summary)


@dataclasses.dataclass(frozen=True)
class _Unusable:
    """Why a pair gave no record."""

    kind: str
    reason: str


def _pack_pair(
    source: PairSource, options: PackOptions, video: bool, index: int
) -> Sequence[Packed] | _Unusable:
    """The records of one pair."""
    try:
        if isinstance(source, RecordPairs):
            return [_packed_record(source, index)]
        if video:
            item = source.video(index)
            item = dataclasses.replace(item, texts=source.read(index, media=False).texts)
            (mode,) = options.modes
            return pack_item({mode: options}, item)[mode]
        pair = source.read(index)
        image = pair.picture()
        item = Item(pair.key, "image", "", pair.key, texts=pair.texts)
        return [pack_picture(options, item, pair.image or b"", image)]
    except PairError as error:
        return _Unusable(error.kind, error.reason)
    except MediaError as error:
        return _Unusable("undecodable", error.reason)
    except FileNotFoundError as error:
        return _Unusable("dead", str(error))


def _packed_record(source: RecordPairs, index: int) -> Packed:
    pair = source.read(index, media=False)
    data = with_texts(source.record_set.read(index), pair.texts)
    return Packed(data, {**source.record_set.index[index], "texts": sorted(pair.texts)})


def _work(
    part_set: PartialSet,
    units: Sequence[tuple[int, list[int]]],
    source: PairSource,
    options: PackOptions,
    video: bool,
    jobs: JobOptions,
) -> None:
    """Packs all units, a shard each."""
    results = run_jobs(
        functools.partial(_pack_pair, source, options, video),
        (index for _, unit in units for index in unit),
        workers=jobs.workers,
        runner=jobs.runner,
        time_limit=jobs.time_limit,
        expected=_EXPECTED,
    )
    failures = []
    total = sum(len(unit) for _, unit in units)
    with contextlib.closing(progress(results, total, "packed")) as results:
        for number, unit in units:
            failures += _pack_shard(part_set, number, source, itertools.islice(results, len(unit)))
    print_failures(failures)


def _pack_shard(
    part_set: PartialSet,
    number: int,
    source: PairSource,
    results: Iterable[tuple[int, Sequence[Packed] | _Unusable | Failure]],
) -> list[dict[str, str]]:
    """Writes one shard; returns its failures."""
    failures = []
    with part_set.writer(number) as writer:
        for index, result in results:
            if isinstance(result, _Unusable | Failure):
                key = source.keys[index]
                failure = {"key": key, "source": key, **dataclasses.asdict(result)}
                failures.append(failure)
                writer.fail(failure)
            else:
                for packed in result:
                    writer.write(packed.data, packed.entry)
        writer.close()
    return failures


def _describe(source: PairSource, options: PackOptions, video: bool) -> dict[str, Any]:
    """What the manifest says besides counts."""
    if isinstance(source, RecordPairs):
        if video:
            raise ValueError(f"{source.name} holds records already: leave --video out")
        manifest = source.record_set.manifest
        return {name: value for name, value in manifest.items() if name not in _COUNTED}
    return options.describe(options.modes[0] if video else "image")


def _fingerprint(description: Mapping[str, Any], source: PairSource, per_shard: int) -> str:
    """Hash of all that decides a set."""
    columns = dataclasses.asdict(source.columns)
    captions = None if source.captions is None else source.captions.stamp
    keys = hashlib.sha256("\n".join(source.keys).encode()).hexdigest()
    text = json.dumps(
        [description, per_shard, columns, captions, keys, source.stamp], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _failures(part_set: PartialSet, keys: set[str]) -> list[dict[str, str]]:
    """The failures among these keys, in this run or in an earlier one."""
    return [failure for failure in part_set.failures() if failure["key"] in keys]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit pack-pairs",
        description="Turns image-text pairs into a record set of pictures with texts, OUT/image; "
        "or video-text pairs into one of patches, OUT/MODE.",
        epilog="A set that was packed of the same pairs with the same options is left as it is.",
    )
    parser.add_argument("source", metavar="SOURCE", help=f"one of {SPECS}")
    parser.add_argument("--out", required=True, help="folder or URL of the record set")
    pairs = parser.add_argument_group("pairs")
    pairs.add_argument(
        "--preset",
        choices=sorted(COLUMN_PRESETS),
        default="default",
        help="which columns are what (default: %(default)s)",
    )
    pairs.add_argument(
        "--columns",
        default="",
        metavar="ROLE=COLUMN,...",
        help="other columns than those of the preset: image, video, key, text_0, text_1 ...; "
        "a|b tries two",
    )
    pairs.add_argument("--captions", metavar="FILE", help=".jsonl or .parquet of further texts")
    pairs.add_argument(
        "--join",
        choices=JOINS,
        default="key",
        help="what joins them to the pairs (default: %(default)s)",
    )
    pairs.add_argument("--video", action="store_true", help="pack the videos of the pairs")
    add_view_arguments(parser)
    records = parser.add_argument_group("records")
    defaults = PackOptions()
    records.add_argument(
        "--mode", choices=MODES, default="codec", help="of videos (default: %(default)s)"
    )
    records.add_argument(
        "--budget", type=int, default=defaults.budget, help="most patches of a video's record"
    )
    records.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change one field of the codec selection, see `codecvit pack --help`",
    )
    records.add_argument(
        "--storage", choices=STORAGES, default=defaults.storage.kind, help="of videos' patches"
    )
    records.add_argument("--quality", type=int, default=defaults.storage.quality, help="of JPEG")
    records.add_argument(
        "--picture-side",
        type=int,
        default=defaults.picture_side,
        metavar="N",
        help="pictures are kept as files, their short side scaled down to at most N pixels",
    )
    records.add_argument(
        "--pairs-per-shard", type=int, default=4096, help="most pairs of a shard (%(default)s)"
    )
    records.add_argument("--overwrite", action="store_true", help="replace a set in the way")
    add_job_arguments(parser)
    return parser
