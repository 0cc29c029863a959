"""`codecvit llava check`: is everything there, and right, before a GPU is used?"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...files import exists, is_folder, is_url, join, list_files
from ...jobs import Failure, run_jobs
from .keys import key_of
from .pack_check import PackReport, check_pack
from .packs import EXPECTED, META
from .recipe import data_root
from .recipe_check import check_recipe
from .rows import (
    IMAGE_TOKEN,
    RowError,
    conversation,
    count_tokens,
    folder_of,
    images_of,
    iter_rows,
    video_of,
)


class Problem(NamedTuple):
    """Something that would spoil a training or an evaluation.

    Attributes:
      kind: MISS (asked for and not there), COUNT (of `<image>`), FILE, POSITIONS, CONFIG, ROW.
      subject: the row, key or folder.
      reason: what is wrong.
    """

    kind: str
    subject: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}: {self.reason}"


def check_rows(path: str, image_folder: str, workers: int | None = 0) -> Iterator[Problem]:
    """Checks a training JSONL and all that it names.

    Args:
      path: file or URL.
      image_folder: what the images of rows without positions are relative to; those of rows with
        positions are relative to the folder of the JSONL.
      workers: processes.

    Yields:
      Every problem.

    Raises:
      ValueError: there are no rows.
    """
    base = folder_of(path)
    folders = {
        folder_of(join(base, row["positions_thw"]))
        for _, row in iter_rows(path)
        if isinstance(row, dict) and isinstance(row.get("positions_thw"), str)
    }
    reports = _check_packs(folders, workers)
    hashes: collections.Counter[str] = collections.Counter()
    number = -1
    for number, row in iter_rows(path):
        if isinstance(row, RowError):
            yield Problem("ROW", f"row {number}", str(row))
            continue
        subject = f"row {number} (id {row.get('id')})"
        try:
            yield from _check_row(row, subject, base, image_folder, reports, hashes)
        except RowError as error:
            yield Problem("ROW", subject, str(error))
    if number < 0:
        raise ValueError(f"{path} holds no rows")
    yield from _check_hashes(path, hashes)


def check_assets(path: str, workers: int | None = 0) -> Iterator[Problem]:
    """Checks all assets.

    Args:
      path: what `llava assets` was given as --out, or the folder `assets` in it.
      workers: processes.

    Yields:
      Every problem.

    Raises:
      ValueError: there are no assets.
    """
    folder, keys = asset_keys(path)
    reports = _check_packs((join(folder, key) for key in keys), workers)
    for key in keys:
        report = reports[join(folder, key)]
        for kind, reason in report.problems:
            yield Problem(kind, key, reason)
        if not report.problems and report.config_hash is None:
            yield Problem("FILE", key, f"has no {META}: it is unfinished, make it again")
        elif not report.problems and report.key != key:
            yield Problem("CONFIG", key, f"holds the assets of the key {report.key}")
    hashes = collections.Counter(filter(None, (r.config_hash for r in reports.values())))
    yield from _check_hashes(path, hashes)


def asset_keys(path: str) -> tuple[str, list[str]]:
    """(the folder of the assets' folders, their names); raises ValueError if there are none."""
    folder = join(path, "assets") if is_folder(join(path, "assets")) else path
    if is_url(folder):
        keys = sorted({name.partition("/")[0] for name in list_files(folder) if "/" in name})
    else:
        found = Path(folder).iterdir() if Path(folder).is_dir() else ()
        keys = sorted(entry.name for entry in found if entry.is_dir())
    if not keys:
        raise ValueError(f"{path} holds no assets")
    return folder, keys


def missing_assets(path: str, keys: str, root: str) -> Iterator[Problem]:
    """A MISS for every row of `keys` whose assets are not there, by the key that `key_of` gives."""
    there = set(asset_keys(path)[1])
    for number, row in iter_rows(keys):
        try:
            if isinstance(row, RowError):
                raise row
            key = key_of({**row, "video": video_of(row)}, root)
        except ValueError as error:
            yield Problem("ROW", f"row {number} of {keys}", str(error))
            continue
        if key not in there:
            yield Problem("MISS", key, f"no assets of {row.get('video')} (row {number} of {keys})")


def missing_rows(path: str, keys: str) -> Iterator[Problem]:
    """A MISS for every row of `keys` whose id does not come as often in the JSONL."""
    there = collections.Counter(
        str(row.get("id")) for _, row in iter_rows(path) if isinstance(row, dict)
    )
    for number, row in iter_rows(keys):
        if isinstance(row, RowError):
            yield Problem("ROW", f"row {number} of {keys}", str(row))
            continue
        there[str(row.get("id"))] -= 1
        if there[str(row.get("id"))] < 0:
            yield Problem("MISS", f"id {row.get('id')}", f"row {number} of {keys} is not in {path}")


def main(argv: list[str]) -> int:
    """The verb: returns 0, or 1 if there are problems, or 2 if there is nothing to check."""
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.target is None) == (args.recipe is None):
        parser.error("give either a JSONL, a folder of assets, or --recipe")
    if args.recipe is not None:
        return _check_recipe(args)
    count, kinds = 0, collections.Counter()
    try:
        for problem in _problems(args):
            print(problem)
            count += 1
            kinds[problem.kind] += 1
    except (ValueError, OSError) as error:
        print(f"codecvit llava check: {error}", file=sys.stderr)
        return 2
    told = ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items()))
    print(f"{args.target}: {f'{count} problems ({told})' if count else 'no problems'}")
    return 1 if count else 0


def _check_recipe(args: argparse.Namespace) -> int:
    try:
        lacks = check_recipe(args.recipe, data_root(args.recipe, args.root), args.workers)
    except (ValueError, OSError) as error:
        print(f"codecvit llava check: {error}", file=sys.stderr)
        return 2
    for group in lacks:
        print(f"{group.kind}: {len(group.found)} of {group.total}")
        for line in group.found:
            print(f"  {line}")
    told = ", ".join(f"{group.kind} {len(group.found)}" for group in lacks)
    count = sum(len(group.found) for group in lacks)
    print(f"{args.recipe}: {f'{count} problems ({told})' if count else 'no problems'}")
    return 1 if count else 0


def _problems(args: argparse.Namespace) -> Iterator[Problem]:
    if not exists(args.target):
        raise ValueError(f"{args.target} does not exist")
    if is_folder(args.target):
        yield from check_assets(args.target, args.workers)
        if args.keys is not None:
            root = folder_of(args.keys) if args.root is None else args.root
            yield from missing_assets(args.target, args.keys, root)
        return
    images = folder_of(args.target) if args.image_folder is None else args.image_folder
    yield from check_rows(args.target, images, args.workers)
    if args.keys is not None:
        yield from missing_rows(args.target, args.keys)


def _check_packs(folders: Iterable[str], workers: int | None) -> dict[str, PackReport]:
    reports = {}
    for folder, report in run_jobs(check_pack, sorted(folders), workers=workers, expected=EXPECTED):
        if isinstance(report, Failure):
            report = PackReport(problems=(("FILE", f"{report.kind}: {report.reason}"),))
        reports[folder] = report
    return reports


def _check_row(
    row: Mapping[str, Any],
    subject: str,
    base: str,
    image_folder: str,
    reports: Mapping[str, PackReport],
    hashes: collections.Counter[str],
) -> Iterator[Problem]:
    images = images_of(row)
    if row.get("video"):
        raise RowError("still has a video: run codecvit llava data")
    tokens = count_tokens(conversation(row), IMAGE_TOKEN)
    if tokens != len(images):
        yield Problem("COUNT", subject, f"{tokens} {IMAGE_TOKEN} for {len(images)} images")
    positions = row.get("positions_thw")
    if positions is None:
        for image in images:
            if not exists(join(image_folder, image)):
                yield Problem("FILE", subject, f"{join(image_folder, image)} does not exist")
        return
    if not isinstance(positions, str):
        raise RowError(f"positions_thw = {json.dumps(positions)} must be a path")
    folder = folder_of(join(base, positions))
    report = reports[folder]
    for kind, reason in report.problems:
        yield Problem(kind, subject, reason)
    if report.config_hash is not None:
        hashes[report.config_hash] += 1
    wanted = [join(folder, name) for name in report.images]
    if report.images and [join(base, image) for image in images] != wanted:
        yield Problem("FILE", subject, f"its images are not those of {folder}, in their order")


def _check_hashes(path: str, hashes: Mapping[str, int]) -> Iterator[Problem]:
    if len(hashes) > 1:
        told = ", ".join(f"{number} with {name}" for name, number in sorted(hashes.items()))
        yield Problem("CONFIG", path, f"mosaics were made with different options: {told}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit llava check",
        description="Checks a training JSONL or a folder of assets: as many <image> as images, all "
        "files whole, shape and range of the positions, one set of options for all. Prints a line "
        "per problem. With --recipe: is there all that a training needs?",
        epilog="example: codecvit llava check assets_root --keys videos.jsonl",
    )
    parser.add_argument("target", nargs="?", metavar="JSONL|ASSETS", help="what to check")
    parser.add_argument(
        "--recipe",
        metavar="YAML",
        help="instead: a recipe of training data; lists all files and packs that it names and "
        "--root lacks, and packs made with different options",
    )
    parser.add_argument(
        "--keys",
        metavar="FILE",
        help="rows that have to be there: of assets those of the benchmark, else the raw rows; "
        "what lacks is listed as MISS",
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="as for `llava assets` (default: the folder of --keys); with --recipe the folder of "
        "all data (default: that of the recipe)",
    )
    parser.add_argument(
        "--image-folder",
        metavar="DIR",
        help="what images of rows without mosaics are relative to (default: the folder of the "
        "JSONL)",
    )
    parser.add_argument(
        "--workers", type=int, help="processes; 0 works in this one (default: one per core)"
    )
    return parser
