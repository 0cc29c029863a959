"""`codecvit llava data`: raw LLaVA rows with videos -> packs of mosaics and the JSONL to train on.

Rows of one video share its pack. What a job finds out about its videos goes into a part; whoever
has all parts goes through the input once more and writes the rows in its order, so that any number
of workers and of jobs gives the same bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ...files import is_url, join, make_folder, upload
from ...jobs import JobOptions, add_job_arguments, job_options
from .keys import (
    pack_folder,
    pack_suffix,
    published_suffix,
    relative_path,
    sanitise,
    stem_of,
)
from .options import MosaicOptions, add_mosaic_arguments, mosaic_options
from .pack_index import PackIndex
from .packs import POSITIONS, PackTask, read_pack
from .rows import RowError, folder_of, iter_rows, json_line, video_of, with_mosaics
from .stages import RowName, SelectionIndex
from .work import (
    Outcome,
    Parts,
    Tally,
    failed,
    file_hash,
    print_failures,
    run_packs,
    write_failures,
)


@dataclasses.dataclass(frozen=True)
class DataPlan:
    """What `llava data` reads and writes; files and folders are absolute paths or URLs.

    Attributes:
      rows: the raw rows, JSON or JSONL.
      root: what relative videos are relative to.
      out: the JSONL to write.
      images: folder of the packs; they are made there, or with `reuse` only looked up.
      reuse: make nothing.
      absolute: write absolute paths.
      selection: folder of stage-1 files to take the patches from, or None.
      selection_out: folder to write stage-1 files to, or None.
    """

    rows: str
    root: str
    out: str
    images: str
    reuse: bool = False
    absolute: bool = False
    selection: str | None = None
    selection_out: str | None = None

    def __post_init__(self) -> None:
        if not self.absolute and is_url(self.out) != is_url(self.images):
            raise ValueError(
                f"from {self.out} to {self.images} there is no relative path: give --paths absolute"
            )


def make_data(plan: DataPlan, options: MosaicOptions, jobs: JobOptions) -> tuple[Tally, bool]:
    """Makes packs and, once all jobs have done so, the JSONL and `<out>.failures.jsonl`.

    Args:
      plan: files.
      options: how mosaics are made.
      jobs: workers and shard.

    Returns:
      (counts of this job's videos and, in the job that finishes, of unusable rows; whether the
      JSONL is written).

    Raises:
      ValueError, OSError: the input is unusable.
    """
    videos = _videos(plan)
    mine = jobs.shard.mine(videos)
    tally = Tally()
    packs = PackIndex(plan.images)
    if plan.reuse:
        outcomes = {name: _reuse(videos[name], packs, options, tally) for name in mine}
    else:
        index = None if plan.selection is None else SelectionIndex(plan.selection)
        outcomes, tasks = {}, {}
        for name in mine:
            task = _task(plan, videos[name], packs, index)
            if task is None:
                tally.failed += 1
                reason = f"{plan.selection} holds no stage-1 files of this video's rows"
                outcomes[name] = failed("NoSelection", reason)
            else:
                tasks[name] = task
        outcomes |= run_packs(tasks, options, jobs, tally)
    print_failures("data", outcomes)
    made_of = {
        "config": options.hash,
        "input": file_hash(plan.rows),
        "plan": dataclasses.asdict(plan),
    }
    every = Parts(plan.out, made_of, jobs.shard).collect(outcomes)
    if every is None:
        return tally, False
    tally.failed += _write_rows(plan, every)
    return tally, True


def main(argv: list[str]) -> int:
    """The verb: returns 0, or 1 if too much failed, or 2 for options or input that cannot work."""
    args = _parser().parse_args(argv)
    try:
        jobs = job_options(args)
        options = mosaic_options(args, given_selection=args.from_selection is not None)
        if args.write_selection is not None and options.geometry != "square":
            raise ValueError("--write-selection needs --geometry square, which its files stand for")
        source = _absolute(args.input)
        plan = DataPlan(
            rows=source,
            root=folder_of(source) if args.root is None else _absolute(args.root),
            out=_absolute(args.out_jsonl),
            images=_absolute(args.reuse or args.out_images),
            reuse=args.reuse is not None,
            absolute=args.paths == "absolute",
            selection=args.from_selection and _absolute(args.from_selection),
            selection_out=args.write_selection and _absolute(args.write_selection),
        )
        if plan.reuse and (plan.selection or plan.selection_out):
            raise ValueError("--reuse makes no packs: leave out --from- and --write-selection")
        if plan.selection and plan.selection_out:
            raise ValueError(
                "--from-selection chooses no patches that --write-selection could write"
            )
        make_folder(folder_of(plan.out))
        tally, finished = make_data(plan, options, jobs)
    except (ValueError, OSError) as error:
        print(f"codecvit llava data: {error}", file=sys.stderr)
        return 2
    if finished:
        failures = f"; see {args.out_jsonl}.failures.jsonl" if tally.failed else ""
        print(f"{args.out_jsonl}: complete{failures}")
    else:
        print(f"{args.out_jsonl}: not yet, it comes with the last of {jobs.shard.count} jobs")
    if options.png and not options.lossless and not plan.reuse:
        print(f"mosaics are PNG: cells of {options.patch} pixels would share the blocks of a JPEG")
    print(f"videos: {tally.summary}")
    return jobs.exit_status(tally.summary)


@dataclasses.dataclass
class _Video:
    """A video of the data set with the rows that use it."""

    name: str
    path: str
    raw: str  # as the first row has it
    sample_id: str
    rows: list[RowName]


def _videos(plan: DataPlan) -> dict[str, _Video]:
    """All videos by name; rows that cannot be used are left to `_write_rows`."""
    videos: dict[str, _Video] = {}
    keep = plan.selection is not None or plan.selection_out is not None
    for number, row in iter_rows(plan.rows):
        try:
            raw = None if isinstance(row, RowError) else video_of(row)
        except RowError:
            continue
        if raw is None:
            continue
        name, sample_id = relative_path(raw, plan.root), _id_of(row)
        video = videos.setdefault(name, _Video(name, join(plan.root, raw), raw, sample_id, []))
        video.sample_id = min(video.sample_id, sample_id)
        video.raw = min(video.raw, raw)
        if keep:
            video.rows.append(RowName(sample_id, raw, number))
    return videos


def _id_of(row: Mapping[str, Any]) -> str:
    return str(row.get("id", ""))


def _task(
    plan: DataPlan, video: _Video, packs: PackIndex, index: SelectionIndex | None
) -> PackTask | None:
    """How to make the pack of a video; None if its stage-1 files are not there."""
    prefix = None
    if index is not None:
        found = (index.find(row.sample_id, row.video) for row in video.rows)
        prefix = next(filter(None, found), None)
        if prefix is None:
            return None
    folder = packs.find(pack_suffix(video.name))
    return PackTask(
        video=video.path,
        name=video.name,
        folder=folder or join(plan.images, pack_folder(video.sample_id, video.name)),
        stem=sanitise(stem_of(video.name)),
        selection=prefix,
        selection_out=plan.selection_out,
        rows=tuple(video.rows) if plan.selection_out is not None else (),
    )


def _reuse(video: _Video, packs: PackIndex, options: MosaicOptions, tally: Tally) -> Outcome:
    """The pack of a video as it is, ours or that of the published tool."""
    folder = packs.find(pack_suffix(video.name)) or packs.find(published_suffix(video.raw))
    tally.failed += 1
    if folder is None:
        return failed("NoPack", "no pack has its stem and the hash of its path")
    try:
        images, meta = read_pack(folder)
    except (ValueError, OSError) as error:
        return failed(type(error).__name__, str(error))
    if meta is not None and meta.get("config_hash") != options.hash:
        return failed("OtherOptions", f"{folder} was made with other options: give the same ones")
    tally.failed -= 1
    tally.skipped += 1
    return {"folder": folder, "images": images}


def _write_rows(plan: DataPlan, outcomes: Mapping[str, Outcome]) -> int:
    """Writes the JSONL and the list of failures; returns the number of unusable rows."""
    base = folder_of(plan.out)
    failures, unusable = [], 0

    def shown(folder: str, name: str) -> str:
        path = join(folder, name)
        return path if plan.absolute else relative_path(path, base)

    with _written(plan.out) as file:
        for _, row in iter_rows(plan.rows):
            raw = None
            try:
                if isinstance(row, RowError):
                    raise row
                raw = video_of(row)
                if raw is not None:
                    outcome = outcomes[relative_path(raw, plan.root)]
                    if "kind" in outcome:
                        failures.append(_failure(row, raw, outcome["kind"], outcome["reason"]))
                        continue
                    images = [shown(outcome["folder"], name) for name in outcome["images"]]
                    row = with_mosaics(row, images, shown(outcome["folder"], POSITIONS))
                file.write(json_line(row))
            except RowError as error:
                unusable += 1
                failures.append(_failure(row, raw, "RowError", str(error)))
    write_failures(f"{plan.out}.failures.jsonl", failures)
    return unusable


def _failure(
    row: Mapping[str, Any] | RowError, video: str | None, kind: str, reason: str
) -> dict[str, Any]:
    known = {} if isinstance(row, RowError) else row
    return {
        "id": known.get("id"),
        "video": video or known.get("video"),
        "kind": kind,
        "reason": reason,
    }


@contextmanager
def _written(path: str) -> Iterator[IO[bytes]]:
    """A file to write, which gets its name at the end, complete."""
    folder = None if is_url(path) else folder_of(path)
    with tempfile.TemporaryDirectory(prefix=".codecvit-", dir=folder) as scratch:
        temporary = Path(scratch) / "rows"
        with temporary.open("wb") as file:
            yield file
        if is_url(path):
            upload(temporary, path)
        else:
            temporary.replace(path)


def _absolute(path: str) -> str:
    return path if is_url(path) else str(Path(path).absolute())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit llava data",
        description="Turns rows with videos into rows with mosaics: images of the patches that the "
        "codec selection keeps, with their places in space and time. Rows with images or text only "
        "pass through unchanged.",
        epilog="example: codecvit llava data --input raw.json --out-jsonl train.jsonl "
        "--out-images images",
    )
    parser.add_argument("--input", required=True, metavar="FILE", help="raw rows, JSON or JSONL")
    parser.add_argument("--out-jsonl", required=True, metavar="FILE", help="rows to train on")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out-images", metavar="DIR", help="folder of the mosaics")
    where.add_argument(
        "--reuse", metavar="DIR", help="make no mosaics: write new rows over those in this folder"
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="what the paths of videos are relative to (default: the folder of --input)",
    )
    parser.add_argument(
        "--paths",
        choices=("relative", "absolute"),
        default="relative",
        help="how the rows name the mosaics; relative to the folder of --out-jsonl (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--write-selection", metavar="DIR", help="also write the published tool's stage-1 files"
    )
    parser.add_argument(
        "--from-selection",
        metavar="DIR",
        help="take the patches from stage-1 files, ours or published, and score nothing",
    )
    add_mosaic_arguments(parser)
    add_job_arguments(parser)
    return parser
