"""The examples of a labelled data set as the attentive probe sees them: lists, records, labels.

`codecvit probe-data NAME --out OUT` writes OUT/dataset.json, OUT/{train,test}.jsonl with a line for
every example, whether its file could be packed or not, and OUT/{train,test}/INPUT record sets of
those that could; OUT/test/INPUT.view1, ... are further views of the same examples. An example and
its record have one key.

Shape suffixes: N examples of a split, C classes.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from ...data.records import RecordSet
from ...evaluators.labelled import held_out

METRICS = ("top1", "mean_average_precision")
_SHOWN = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The examples of one split, in the order of their list.

    Attributes:
      keys: one per example.
      targets_NC: bool, which labels an example has.
      views: the record sets of its views, at least one.
      rows: per view int64 [N], number of each example's record, -1 where there is none.
    """

    keys: list[str]
    targets_NC: np.ndarray
    views: list[RecordSet]
    rows: list[np.ndarray]

    @property
    def missing(self) -> list[str]:
        """Keys of the examples that have no record in any view."""
        found = np.any([rows >= 0 for rows in self.rows], axis=0)
        return [key for key, there in zip(self.keys, found, strict=True) if not there]

    def examples_of(self, view: int) -> np.ndarray:
        """int64 [records of a view], number of the example of each record."""
        rows = self.rows[view]
        examples = np.empty(len(self.views[view]), np.int64)
        examples[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        return examples


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeData:
    """A data set with one kind of input.

    Attributes:
      name: of the data set.
      metric: one of `METRICS`; the second is for several labels an example.
      num_classes: C.
      train, test: its splits; the training split has one view.
    """

    name: str
    metric: str
    num_classes: int
    train: Split
    test: Split

    @property
    def longest(self) -> int:
        """Tokens of the longest record."""
        sets = [*self.train.views, *self.test.views]
        return max(found.manifest["tokens"]["max"] for found in sets)


def read_probe_data(folder: str | Path, input_name: str) -> ProbeData:
    """Opens what `codecvit probe-data --out` wrote.

    Args:
      folder: OUT.
      input_name: INPUT, such as codec2048 or frames8.

    Raises:
      ValueError: a file is missing or damaged, a label is out of range, or lists and records don't
        belong together.
    """
    folder = Path(folder)
    path = folder / "dataset.json"
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: config.data is the OUT of `codecvit probe-data NAME --root "
            "DIR --out OUT`"
        )
    about = json.loads(path.read_text(encoding="utf-8"))
    if about.get("metric") not in METRICS:
        raise ValueError(f"{path}: metric = {about.get('metric')!r} must be one of {METRICS}")
    C, single = int(about["num_classes"]), about["metric"] == "top1"
    train = _read_split(folder, "train", [input_name], C, single)
    extra = (p.name for p in (folder / "test").glob(f"{input_name}.view*") if p.is_dir())
    views = sorted(extra, key=lambda name: (len(name), name))
    test = _read_split(folder, "test", [input_name, *views], C, single)
    return ProbeData(about["name"], about["metric"], C, train, test)


def split_training(data: ProbeData, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Records to fit and records that choose epoch and rate.

    The part is drawn among all examples of the list by class, so it is the same whatever could be
    packed and whatever the input is. An example with several labels belongs to the rarest of them.

    Args:
      data: the data set.
      share: of the examples of each class, held out.
      seed: of the draw.

    Returns:
      Numbers of the records of both parts, int64.

    Raises:
      ValueError: one of the parts is empty.
    """
    targets_NC, rows = data.train.targets_NC, data.train.rows[0]
    counts_C = targets_NC.sum(axis=0)
    examples, labels = np.nonzero(targets_NC)
    commonest_first = np.argsort(-counts_C[labels], kind="stable")
    stratum_N = np.full(len(rows), data.num_classes)  # of its own: those without a label
    # What is assigned last stays.
    stratum_N[examples[commonest_first]] = labels[commonest_first]
    held_out_N = held_out(stratum_N, seed, share)
    fit, choose = rows[(rows >= 0) & ~held_out_N], rows[(rows >= 0) & held_out_N]
    if not len(fit) or not len(choose):
        raise ValueError(
            f"{data.train.views[0].path} leaves {len(fit)} examples to fit and {len(choose)} to "
            "choose epoch and rate: pack more of them, or change config.held_out"
        )
    return np.sort(fit), np.sort(choose)


def shown(keys: list[str]) -> str:
    """Some keys, for a message."""
    more = f" (+{len(keys) - _SHOWN} more)" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def _read_split(folder: Path, name: str, inputs: list[str], C: int, single: bool) -> Split:
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: run `codecvit probe-data` with --out again")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    keys = [line["key"] for line in lines]
    place = {key: number for number, key in enumerate(keys)}
    if not lines or len(place) < len(keys):
        raise ValueError(f"{path} must list examples with different keys, got {len(keys)} lines")
    targets_NC = np.zeros((len(keys), C), bool)
    for number, line in enumerate(lines):
        labels = line["labels"]
        fits = all(0 <= label < C for label in labels) and (len(labels) == 1 or not single)
        if not fits:
            wanted = f"{'one label' if single else 'labels'} in 0..{C - 1}"
            raise ValueError(f"{path}: {line['key']!r} has the labels {labels}, expected {wanted}")
        targets_NC[number, labels] = True
    views, rows = [], []
    for input_name in inputs:
        records = RecordSet(folder / name / input_name)
        unknown = [key for key in records.keys if key not in place]
        if unknown or not len(records):
            raise ValueError(
                f"{records.path} holds {len(records)} records, {len(unknown)} of which {path} does "
                f"not list: {shown(unknown)}; run `codecvit probe-data` with --out again"
            )
        found = np.full(len(keys), -1, np.int64)
        found[[place[key] for key in records.keys]] = np.arange(len(records))
        views.append(records)
        rows.append(found)
    return Split(keys, targets_NC, views, rows)
