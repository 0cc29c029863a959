"""The labelled data sets of the attentive probe: one table.

Layouts are those in which the authors hand the data out. Sources:

- the authors' own text: COIN (github.com/coin-dataset/annotations), RareAct
  (github.com/antoine77340/RareAct), Moments in Time (README of the download), Perception Test
  (github.com/google-deepmind/perception_test), the scoring of Charades (README and
  Charades_v1_classify.m of the download);
- public programs that read the authors' files, which agree with each other: Something-Something V2,
  Diving48, Charades-Ego, EPIC-KITCHENS-100, Kinetics, HMDB51, UCF101, Jester.

What could not be established stands in the notes of the table, which `codecvit probe-data` prints;
there a list of one's own can be given as csv:NAME. Numbers of classes are those of the published
probe (onevision-encoder), except where a note says otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from . import annotations, plain_lists
from .listing import Listing

TOP1 = "top1"
MEAN_AVERAGE_PRECISION = "mean_average_precision"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One labelled data set.

    Attributes:
      name: as on the command line.
      num_classes: of its task; None, until it is read, for lists of one's own.
      metric: "top1", or "mean_average_precision" where an example has any number of labels; None,
        until it is read, for lists of one's own.
      reader: (folder of the download, num_classes) -> what it lists.
      note: what a reader of its numbers has to know.
    """

    name: str
    num_classes: int | None
    metric: str | None
    reader: Callable[[Path, int | None], Listing]
    note: str = ""

    def read(self, root: Path) -> tuple[Dataset, Listing]:
        """Reads what a download lists, and looks for the files.

        Args:
          root: the folder of the download.

        Returns:
          The data set with number of classes and metric filled in, and the listing.

        Raises:
          ValueError: the folder or an annotation file is missing or no such file.
        """
        if not root.is_dir():
            raise ValueError(f"root = {root} is no folder")
        listing = self.reader(root, self.num_classes)
        splits = listing.train, listing.test
        metric = self.metric
        if metric is None:
            single = all(len(e.labels) == 1 for split in splits for e in split.examples)
            metric = TOP1 if single else MEAN_AVERAGE_PRECISION
        if metric == TOP1:
            for split in splits:
                split.require_one_label()
        known = dataclasses.replace(self, num_classes=listing.train.num_classes, metric=metric)
        return known, listing


_CHARADES_NOTE = (
    "mean average precision over 157 classes as in Charades_v1_classify.m; the published probe "
    "trains on one label per video instead"
)
_PERCEPTION_NOTE = (
    "the clips of the published probe (63 classes) are not public: these are the action segments "
    "of the train and valid splits of the action localisation task"
)
_COIN_NOTE = (
    "180 tasks, as its authors state; a published script says 150 and not which. An example is the "
    "annotated stretch of a video"
)
_RAREACT_NOTE = (
    "no training split is published: one of five videos, by a hash of the name, is the test split. "
    "Only segments that show their action are used. Its official zero-shot metric (mWAP) ranks all "
    "segments and is something else"
)
_OFFICIAL_SPLIT = "official split {} of 3; results are usually stated for the mean of all three"

_TABLE = (
    Dataset("ssv2", 174, TOP1, annotations.something_something),
    Dataset("diving48", 48, TOP1, annotations.diving48),
    Dataset("perception_test", 63, TOP1, annotations.perception_test, _PERCEPTION_NOTE),
    *(
        Dataset(
            f"charades_ego{name}",
            157,
            MEAN_AVERAGE_PRECISION,
            functools.partial(annotations.charades_ego, view=view),
            _CHARADES_NOTE,
        )
        for name, view in (("", ""), ("_1st", "_only1st"), ("_3rd", "_only3rd"))
    ),
    *(
        Dataset(
            f"epic_{part}",
            num_classes,
            TOP1,
            functools.partial(annotations.epic_kitchens, part=part),
        )
        for part, num_classes in (("verb", 97), ("noun", 300))
    ),
    *(Dataset(f"k{n}", n, TOP1, annotations.kinetics) for n in (400, 600, 700)),
    *(
        Dataset(
            f"{name}{'' if number == 1 else f'_split{number}'}",
            num_classes,
            TOP1,
            functools.partial(reader, split_number=number),
            _OFFICIAL_SPLIT.format(number),
        )
        for name, num_classes, reader in (
            ("hmdb51", 51, annotations.hmdb51),
            ("ucf101", 101, annotations.ucf101),
        )
        for number in (1, 2, 3)
    ),
    Dataset("coin", 180, TOP1, annotations.coin, _COIN_NOTE),
    Dataset("jester", 27, TOP1, annotations.jester),
    Dataset("rareact", 149, TOP1, annotations.rareact, _RAREACT_NOTE),
    Dataset("mit", 339, TOP1, annotations.moments_in_time),
)

DATASETS = {dataset.name: dataset for dataset in _TABLE}
"""The data sets by name."""

_PLAIN = {"csv": plain_lists.listed_in_csv, "folders": plain_lists.in_class_folders}


def find_dataset(name: str) -> Dataset:
    """The data set of a name, or one that is listed plainly.

    Args:
      name: one of DATASETS; or "csv:" or "folders:" for train.csv and test.csv, or class folders,
        of one's own; with a name of DATASETS behind the colon in place of its own lists.

    Raises:
      ValueError: there is no such data set.
    """
    form, colon, rest = name.partition(":")
    if colon and form in _PLAIN:
        known = DATASETS.get(rest)
        if known is None:
            return Dataset(rest or form, None, None, _PLAIN[form])
        return dataclasses.replace(known, reader=_PLAIN[form], note="")
    if name not in DATASETS:
        raise ValueError(
            f"data set {name!r} is not known; give csv:NAME or folders:NAME for lists of your own, "
            f"or one of {', '.join(DATASETS)}"
        )
    return DATASETS[name]
