"""`codecvit llava assets`: the videos of a benchmark -> `assets/<key>/` for its evaluation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files import is_url, join, make_folder
from ...jobs import JobOptions, add_job_arguments, job_options
from .keys import config_hash, key_of, relative_path
from .options import MosaicOptions, add_mosaic_arguments, mosaic_options
from .packs import PackTask
from .rows import RowError, folder_of, iter_rows, video_of
from .span import Span
from .work import Parts, Tally, failed, file_hash, print_failures, run_packs, write_failures


def make_assets(
    rows: str, out: str, root: str, options: MosaicOptions, jobs: JobOptions
) -> tuple[Tally, bool]:
    """Makes the assets of a benchmark and, once all jobs have done so, `failures.jsonl`.

    Args:
      rows: JSON or JSONL with `video`, perhaps `key`, perhaps bounds (see `key_of`), and whatever
        else.
      out: folder or URL; the assets of a video lie in `<out>/assets/<key>/`.
      root: folder or URL that the videos' paths are relative to, which `key_of` hashes.
      options: how mosaics are made.
      jobs: workers and shard.

    Returns:
      (counts of this job's videos and, in the job that finishes, of unusable rows; whether that is
      this job).

    Raises:
      ValueError, OSError: the input is unusable.
    """
    videos, unusable = _videos(rows, root)
    tally, outcomes, tasks = Tally(), {}, {}
    for key in jobs.shard.mine(videos):
        (first, span), *others = sorted(videos[key], key=lambda part: (part[0], part[1].suffix))
        if others:
            tally.failed += 1
            other = f"{others[0][0]}{others[0][1].suffix}"
            reason = f"the key {key} also stands for {other}: give each a key of its own"
            outcomes[key] = {**failed("KeyCollision", reason), "video": first}
            continue
        tasks[key] = PackTask(
            video=join(root, first),
            name=first,
            folder=join(out, "assets", key),
            stem="mosaic",
            identity=(("key", key),),
            evaluation=True,
            span=span,
        )
    for key, outcome in run_packs(tasks, options, jobs, tally):
        outcomes[key] = {**outcome, "video": tasks[key].name}
    print_failures("assets", outcomes)
    list_path = join(out, "failures.jsonl")
    made_of = {"config": options.hash, "input": file_hash(rows), "root": config_hash({"": root})}
    make_folder(out)
    every = Parts(list_path, made_of, jobs.shard).collect(outcomes)
    if every is None:
        return tally, False
    found = [{"key": key, **every[key]} for key in sorted(every) if "kind" in every[key]]
    names = ("key", "video", "kind", "reason")
    write_failures(list_path, ({name: f[name] for name in names} for f in [*found, *unusable]))
    tally.failed += len(unusable)
    return tally, True


def main(argv: list[str]) -> int:
    """The verb: returns 0, or 1 if too much failed, or 2 for options or input that cannot work."""
    args = _parser().parse_args(argv)
    try:
        jobs = job_options(args)
        options = mosaic_options(args)
        root = folder_of(args.jsonl) if args.root is None else args.root
        out, root = (p if is_url(p) else str(Path(p).absolute()) for p in (args.out, root))
        tally, finished = make_assets(args.jsonl, out, root, options, jobs)
    except (ValueError, OSError) as error:
        print(f"codecvit llava assets: {error}", file=sys.stderr)
        return 2
    if finished:
        failures = f"; see {join(args.out, 'failures.jsonl')}" if tally.failed else ""
        print(f"{args.out}: complete{failures}")
    if options.png and not options.lossless:
        print(f"mosaics are PNG: cells of {options.patch} pixels would share the blocks of a JPEG")
    print(f"videos: {tally.summary}")
    return jobs.exit_status(tally.summary)


def _videos(rows: str, root: str) -> tuple[dict[str, set[tuple[str, Span]]], list[dict[str, Any]]]:
    """Videos and their parts by key, one each unless keys collide; failures of unusable rows."""
    videos: dict[str, set[tuple[str, Span]]] = {}
    unusable = []
    for _, row in iter_rows(rows):
        known: Mapping[str, Any] = {} if isinstance(row, RowError) else row
        try:
            if isinstance(row, RowError):
                raise row
            video = video_of(row)
            if video is None:
                raise RowError("has no video")
            key = key_of({**row, "video": video}, root)
            span = Span.of(row)
        except ValueError as error:
            unusable.append(
                {
                    "key": known.get("key"),
                    "video": known.get("video"),
                    "kind": "RowError",
                    "reason": str(error),
                }
            )
        else:
            videos.setdefault(key, set()).add((relative_path(video, root), span))
    return videos, unusable


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit llava assets",
        description="Makes the mosaics that an evaluation shows instead of videos, one folder per "
        "key. The patches are those that `codecvit llava data` chooses with the same options.",
        epilog="example: codecvit llava assets --jsonl videos.jsonl --out assets_root",
    )
    parser.add_argument(
        "--jsonl", required=True, metavar="FILE", help="rows with `video` and perhaps `key`"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="assets come to DIR/assets/KEY")
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="what the paths of videos are relative to; keys hash them from here on (default: the "
        "folder of --jsonl)",
    )
    add_mosaic_arguments(parser)
    add_job_arguments(parser)
    return parser
