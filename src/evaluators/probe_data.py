"""`codecvit probe-data`: what of a labelled data set is there, and its record sets for the probe.

What it writes is stated in docs/probe_data.md. Missing and unreadable videos stay in the lists of
examples and are never replaced: who evaluates counts them as wrong.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..codec.arguments import add_selection_arguments
from ..codec.config import SelectionConfig, selection_config
from ..data.pack import pack
from ..data.packing import PackOptions
from ..data.records import json_lines
from ..data.sources import LABEL_COLUMN, Item
from ..files import write_atomic
from ..jobs import Summary, add_job_arguments, job_options
from ..sequence import NUM_SLOTS
from .datasets import DATASETS, TOP1, Dataset, find_dataset
from .listing import Example, Listing

_SHOWN = 5
DEFAULT_INPUTS = "frames8,frames16,codec2048,codec4096"


def main(argv: list[str]) -> int:
    """The verb: returns 0, or 1 if something is missing or too much failed, or 2 for wrong use."""
    args = _parser().parse_args(argv)
    try:
        jobs = job_options(args)
        selection = selection_config(args.preset, args.set)
        if selection.policy == "groups":
            raise ValueError(
                "policy = 'groups' makes several records of an example: choose another"
            )
        base = PackOptions(size=args.size, patch=args.patch)
        options = {name: _input_options(name, base, selection) for name in args.inputs.split(",")}
        views = view_options(args.views)
        dataset, listing = find_dataset(args.name).read(Path(args.root))
        complete = _report(dataset, listing, _problem_file(args))
        if not (complete or args.allow_missing):
            print(
                "codecvit probe-data: not complete, see above; --allow-missing goes on without, "
                "and the examples that are missing count as wrong",
                file=sys.stderr,
            )
            return 1
        if args.out is None:
            return 0
        how = {
            "jobs": jobs,
            "per_shard": args.files_per_shard,
            "overwrite": args.overwrite,
        }
        summary = _pack(dataset, listing, Path(args.out), options, views, how)
    except ValueError as error:
        print(f"codecvit probe-data: {error}", file=sys.stderr)
        return 2
    return jobs.exit_status(summary)


def view_options(text: str) -> list[dict[str, float | None]]:
    """The views of a test example, as fields of `PackOptions`.

    Args:
      text: "TxC": T temporal offsets times C crops along the long side, C odd.

    Returns:
      T*C views. The first is that of a single view: centre crop, samples from first to last frame.
      Further offsets spread evenly over the distance of two samples (of two chosen frames), further
      crops over the long side: 1x3 is centre, beginning, end.

    Raises:
      ValueError: it is not of that form.
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    offsets, crops = (int(found[1]), int(found[2])) if found else (0, 0)
    if crops % 2 == 0:
        raise ValueError(
            f"views = {text!r} must be offsets x crops, with an odd number of crops, for example "
            "1x1 or 2x3"
        )
    phases = [None, *((0.5 + i / offsets) % 1 for i in range(1, offsets))]
    others = (i / (crops - 1) for i in range(crops) if 2 * i != crops - 1)
    cuts = [0.5, *others]
    return [{"phase": phase, "cut_at": cut_at} for phase in phases for cut_at in cuts]


def _input_options(name: str, base: PackOptions, selection: SelectionConfig) -> PackOptions:
    """What the name of an input stands for."""
    found = re.fullmatch(r"(frames|codec)([1-9]\d*)", name)
    if not found:
        raise ValueError(
            f"input {name!r} must be framesN (whole frames) or codecN (patches), for example "
            f"{DEFAULT_INPUTS}"
        )
    mode, count = found[1], int(found[2])
    if mode == "frames" and count > NUM_SLOTS:
        raise ValueError(f"input {name!r} has more than {NUM_SLOTS} frames, the slots of time")
    budget = count * (base.size // base.patch) ** 2 if mode == "frames" else count
    return dataclasses.replace(base, modes=(mode,), budget=budget, selection=selection)


def _report(dataset: Dataset, listing: Listing, problem_file: Path) -> bool:
    """Prints what is there and writes the rest to a file; returns whether all is there."""
    splits = {"train": listing.train, "test": listing.test}
    print(f"{dataset.name}: {dataset.num_classes} classes, metric {dataset.metric}")
    if dataset.note:
        print(f"note: {dataset.note}")
    print(
        f"{'split':8}{'examples':>10}{'found':>10}{'missing':>10}{'bad lines':>12}{'classes':>10}"
    )
    problems = []
    for name, split in splits.items():
        missing = [example.item.source for example in split.examples if not example.found]
        present = {label for example in split.examples for label in example.labels}
        print(
            f"{name:8}{len(split.examples):>10}{len(split.examples) - len(missing):>10}"
            f"{len(missing):>10}{len(split.unreadable):>12}{len(present):>10}"
        )
        problems += [("missing", name, source) for source in missing]
        problems += [("bad line", name, text) for text in split.unreadable]
        absent = sorted(set(range(dataset.num_classes)) - present)
        classes = [listing.classes[i] if listing.classes else str(i) for i in absent]
        problems += [("class that never occurs", name, text) for text in classes]
    both = _in_both(listing)
    problems += [("in both splits", "train, test", text) for text in both]
    counts = collections.Counter(kind for kind, _, _ in problems)
    for kind, count in counts.items():
        shown = [f"{where}: {text}" for found, where, text in problems if found == kind][:_SHOWN]
        rest = f", and {count - _SHOWN} more" if count > _SHOWN else ""
        print(f"{kind} ({count}): {'; '.join(shown)}{rest}")
    if problems:
        problem_file.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join("\t".join(problem) + "\n" for problem in problems)
        write_atomic(problem_file, lines.encode())
        print(f"all of them: {problem_file}")
    else:
        problem_file.unlink(missing_ok=True)
    for name, split in splits.items():
        if not split.examples:
            raise ValueError(f"split {name} has no example")
    return not (counts["missing"] or counts["bad line"])


def _in_both(listing: Listing) -> list[str]:
    """Files, or segments of them, that are in both splits: by name, not by content."""
    train, test = (
        {(example.item.source, example.item.start, example.item.end) for example in split.examples}
        for split in (listing.train, listing.test)
    )
    return [
        source if start is None else f"{source} from {start:g} s"
        for source, start, _ in sorted(train & test, key=lambda found: (found[0], found[1] or 0))
    ]


def _pack(
    dataset: Dataset,
    listing: Listing,
    out: Path,
    options: Mapping[str, PackOptions],
    views: Sequence[dict[str, float | None]],
    how: Mapping[str, Any],
) -> Summary:
    """Writes lists and record sets; returns how the files of both splits came out."""
    out.mkdir(parents=True, exist_ok=True)
    head = {
        "name": dataset.name,
        "num_classes": dataset.num_classes,
        "classes": listing.classes,
        "metric": dataset.metric,
    }
    write_atomic(out / "dataset.json", json.dumps(head, indent=1, ensure_ascii=False).encode())
    total = Summary()
    for name, split in (("train", listing.train), ("test", listing.test)):
        examples = sorted(split.examples, key=lambda example: example.item.key)
        write_atomic(out / f"{name}.jsonl", json_lines([_line(example) for example in examples]))
        items = list(_items(dataset, listing, examples))
        wanted = {
            input_name if number == 0 else f"{input_name}.view{number}": dataclasses.replace(
                of_input, **view
            )
            for number, view in enumerate(views if name == "test" else views[:1])
            for input_name, of_input in options.items()
        }
        done = pack(items, out / name, wanted, **how).summary
        print(f"{name}: files: {done}")
        total = Summary(
            total.ok + done.ok, total.skipped + done.skipped, total.failed + done.failed
        )
    return total


def _line(example: Example) -> dict[str, object]:
    return {"key": example.item.key, "labels": list(example.labels)}


def _items(dataset: Dataset, listing: Listing, examples: Sequence[Example]) -> Iterator[Item]:
    """The files as packing takes them; with their class by name, where there is exactly one."""
    for example in examples:
        labels = {}
        if dataset.metric == TOP1:
            (label,) = example.labels
            labels = {LABEL_COLUMN: listing.classes[label] if listing.classes else str(label)}
        yield dataclasses.replace(example.item, labels=labels)


def _problem_file(args: argparse.Namespace) -> Path:
    if args.out is not None:
        return Path(args.out) / "problems.txt"
    return Path(re.sub(r"\W+", "-", args.name).strip("-") + "-problems.txt")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit probe-data",
        description="Checks the download of a labelled video data set and, with --out, packs its "
        "splits into record sets for the attentive probe.",
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help=f"{', '.join(DATASETS)}; csv: (train.csv and test.csv with the columns path and "
        "label) and folders: (train/CLASS, test/CLASS) for any other, csv:NAME for own lists of a "
        "known one",
    )
    parser.add_argument("--root", required=True, help="folder of the download")
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="go on although files are missing or lines are bad",
    )
    parser.add_argument("--out", help="folder of the record sets (default: only check)")
    defaults = PackOptions()
    group = parser.add_argument_group("record sets")
    group.add_argument(
        "--inputs",
        default=DEFAULT_INPUTS,
        help="comma list of framesN (N whole frames) and codecN (N patches) (default: %(default)s)",
    )
    group.add_argument(
        "--views",
        default="1x1",
        metavar="TxC",
        help="views of each test example: T offsets in time x C crops (default: %(default)s)",
    )
    group.add_argument("--size", type=int, default=defaults.size, help="pixels (%(default)s)")
    group.add_argument(
        "--patch", type=int, default=defaults.patch, help="side of a patch in pixels (%(default)s)"
    )
    group.add_argument(
        "--files-per-shard", type=int, default=4096, help="most files of a shard (%(default)s)"
    )
    group.add_argument("--overwrite", action="store_true", help="replace sets that are in the way")
    add_selection_arguments(parser)
    add_job_arguments(parser)
    return parser
