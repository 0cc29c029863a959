"""`codecvit llava benchmark`: the videos of public benchmarks -> assets that evaluations find."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from ...codec.llava.assets import make_assets
from ...codec.llava.keys import key_of, sanitise
from ...codec.llava.options import MosaicOptions, add_mosaic_arguments, mosaic_options
from ...codec.llava.rows import json_line
from ...files import write_atomic
from ...jobs import JobOptions, add_job_arguments, job_options
from .download import downloaded, fetch, unpack
from .roots import RECORD
from .tasks import BENCHMARKS, Benchmark, benchmarks_named, hf_home, video_folder

VIDEOS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts")


def main(argv: list[str]) -> int:
    """The verb: 0; 1 if something failed; 2 for what cannot work."""
    args = _parser().parse_args(argv)
    try:
        wanted = benchmarks_named(args.tasks)
        options, jobs = mosaic_options(args), job_options(args)
        chosen = [benchmark for benchmark in wanted if benchmark.has_videos]
        if args.videos is not None and len(chosen) != 1:
            raise ValueError(f"--videos is the folder of one benchmark, not of {len(chosen)}")
    except ValueError as error:
        print(f"codecvit llava benchmark: {error}", file=sys.stderr)
        return 2
    home = hf_home()
    out = home if args.out is None else Path(args.out).absolute()
    for benchmark in wanted:
        if not benchmark.has_videos:
            print(f"{benchmark.task}: images, which need no assets")
    status = 0
    for benchmark in chosen:
        try:
            root = find_videos(benchmark, home, args.videos, args.download, os.environ)
            status = max(status, prepare(benchmark, root, out, options, jobs, args.dry_run))
        except (ValueError, OSError) as error:
            print(f"codecvit llava benchmark: {benchmark.task}: {error}", file=sys.stderr)
            status = max(status, 1 if len(chosen) > 1 else 2)
    return status


def find_videos(
    benchmark: Benchmark,
    home: Path,
    given: str | None,
    download: bool,
    environ: Mapping[str, str],
) -> Path:
    """The folder that a benchmark's videos lie in.

    Args:
      benchmark: which.
      home: HF_HOME.
      given: a folder that is said to hold them, or None.
      download: fetch what is not there.
      environ: for the hub's client.

    Raises:
      ValueError: they are not there, with all the ways to change that.
    """
    if given is not None:
        folder = Path(given).absolute()
        if not folder.is_dir():
            raise ValueError(f"--videos {folder} is no folder")
        return folder
    folder = video_folder(benchmark, home)
    if folder.exists():
        return folder
    snapshot = downloaded(benchmark, home, environ)
    if snapshot is not None and not download:
        return unpack(snapshot, folder)
    if download:
        return fetch(benchmark, home, environ)
    raise ValueError(
        f"{folder}, where lmms-eval looks for its videos, does not exist: name their folder with "
        f"--videos DIR, or let --download fetch {benchmark.hub}"
    )


def prepare(
    benchmark: Benchmark,
    root: Path,
    out: Path,
    options: MosaicOptions,
    jobs: JobOptions,
    dry: bool = False,
) -> int:
    """Makes `<out>/<task>_offline/{<task>_videos.jsonl,assets/}`; what is there already is kept.

    Args:
      benchmark: which.
      root: folder of its videos; keys are made of paths relative to it.
      out: folder.
      options: how mosaics are made.
      jobs: workers and shard.
      dry: only say what would be done.

    Returns:
      0; 1 if too much failed.

    Raises:
      ValueError: there is no video.
      OSError: a file cannot be written.
    """
    videos = list_videos(root)
    if not videos:
        raise ValueError(f"{root} holds no videos ({', '.join(VIDEOS)})")
    folder = out / benchmark.offline
    print(f"{benchmark.task}: {len(videos)} videos in {root} -> {folder}")
    if dry:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for video in videos:
        row = {"video": video, "task": benchmark.task}
        key = key_of(row, str(root))
        # A key of a row is cleaned once more, which would change one that is very long.
        rows.append({**row, "key": key} if sanitise(key) == key else row)
    listing = folder / f"{benchmark.task}_videos.jsonl"
    write_atomic(listing, b"".join(map(json_line, rows)))
    record = {"task": benchmark.task, "root": str(root), "videos": len(videos)}
    write_atomic(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    tally, finished = make_assets(str(listing), str(folder), str(root), options, jobs)
    state = "complete" if finished else "this part is done"
    failures = f"; see {folder / 'failures.jsonl'}" if tally.failed and finished else ""
    print(f"{benchmark.task}: {state}{failures}; videos: {tally.summary}")
    return jobs.exit_status(tally.summary)


def list_videos(root: Path) -> list[str]:
    """Paths of the videos below a folder, relative to it, with `/`, in order."""
    found = []
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            if name.lower().endswith(VIDEOS) and not name.startswith("."):
                found.append((Path(folder) / name).relative_to(root).as_posix())
    return sorted(found)


def _parser() -> argparse.ArgumentParser:
    video = [b for b in BENCHMARKS if b.has_videos]
    names = ", ".join(b.task + (f" ({b.short})" if b.short else "") for b in video)
    parser = argparse.ArgumentParser(
        prog="codecvit llava benchmark",
        description="Makes the assets of public benchmarks, under the keys that the lmms-eval "
        f"plugin looks up: {names}.",
        epilog="example: codecvit llava benchmark nextqa --videos /data/NExTVideo",
    )
    parser.add_argument("tasks", metavar="TASK", help="a task, several with commas, or all")
    parser.add_argument(
        "--videos",
        metavar="DIR",
        help="folder of the videos, with the paths that the task has for them below HF_HOME "
        "(default: where lmms-eval keeps them)",
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="fetch what is not there from the hub; resumes; says the size first",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="assets come to DIR/TASK_offline (default: HF_HOME)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be packed")
    add_mosaic_arguments(parser)
    add_job_arguments(parser)
    return parser
