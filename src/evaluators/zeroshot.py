"""Zero-shot classification: the nearest class by the embedding of its name.

Shapes: N images, D features, Y classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from ..cluster.features import embeddings
from ..cluster.nearest import unit_rows
from ..data.labels import Labels, load_labels
from ..data.records import RecordSet
from .embedding import EmbedImages, EmbedTexts, text_batches
from .labelled import Metrics, ranks_to_metrics
from .prompts import Classes
from .ranks import group_ranks


def class_embeddings(
    prompts: Sequence[Sequence[str]], embed: EmbedTexts, batch_size: int = 256
) -> np.ndarray:
    """The embedding of each class: the mean of those of its texts (Radford et al. 2021, 3.1.4).

    The embedding of every text is scaled to unit length, and so is their mean.

    Args:
      prompts: the texts of each class, as `prompts.class_prompts` makes them; at least one each.
      embed: always `batch_size` texts -> float [batch_size, D].
      batch_size: texts at once.

    Returns:
      float32 [Y, D], rows of unit length.

    Raises:
      ValueError: a class without a text, or embeddings that are not finite.
    """
    for place, texts in enumerate(prompts):
        if not texts:
            raise ValueError(f"class {place} has no text")
    texts = [text for of_class in prompts for text in of_class]
    owner = np.repeat(np.arange(len(prompts)), [len(of_class) for of_class in prompts])
    sums: np.ndarray | None = None
    start = 0
    for rows in text_batches(texts, embed, batch_size):
        if sums is None:
            sums = np.zeros((len(prompts), rows.shape[1]))
        part = slice(start, start + len(rows))
        np.add.at(sums, owner[part], unit_rows(rows, first=part))
        start += len(rows)
    return unit_rows(sums)


def zero_shot(
    image_ND: np.ndarray,
    labels_N: np.ndarray,
    classes_YD: np.ndarray,
    *,
    readable_N: np.ndarray | None = None,
    chunk: int = 8192,
    mesh: Mesh | None = None,
) -> Metrics:
    """Shares of the images whose class is the nearest, or among the five nearest, by cosine.

    A class that is as near as the true one counts as nearer: embeddings that are all the same are
    never right.

    Args:
      image_ND: embeddings of the images, of any length.
      labels_N: integers in [0, Y), or -1 for a row that does not count (padding, no label).
      classes_YD: from `class_embeddings`.
      readable_N: false for an image that could not be read: it counts as wrong. All are read by
        default.
      chunk: classes that are compared at a time.
      mesh: its devices share the images; the first device alone when None.

    Returns:
      "top1" and "top5", shares of the rows that count; "count", their number; "unreadable", how
      many of them could not be read.

    Raises:
      ValueError: shapes that don't fit, a label out of range, no row that counts, embeddings that
        are not finite.
    """
    labels_N = np.asarray(labels_N)
    if labels_N.shape != (len(image_ND),) or not np.issubdtype(labels_N.dtype, np.integer):
        raise ValueError(
            f"labels_N is {labels_N.dtype} {list(labels_N.shape)}: give one integer for each of "
            f"the {len(image_ND)} images"
        )
    if len(labels_N) and not -1 <= labels_N.min() <= labels_N.max() < len(classes_YD):
        raise ValueError(
            f"labels run from {labels_N.min()} to {labels_N.max()}, but there are "
            f"{len(classes_YD)} classes: is it the file of class names of this data set?"
        )
    counts_N = labels_N >= 0
    if not counts_N.any():
        raise ValueError(f"none of the {len(labels_N)} images has a label")
    readable_N = np.ones(len(labels_N), bool) if readable_N is None else readable_N
    rank_N = group_ranks(
        np.where(readable_N[:, None], image_ND, np.float32(0)),
        np.where(readable_N, labels_N, -1),
        classes_YD,
        np.arange(len(classes_YD)),
        chunk=chunk,
        mesh=mesh,
    )
    return ranks_to_metrics(rank_N[counts_N]) | {"unreadable": int((~readable_N[counts_N]).sum())}


def zero_shot_records(
    record_set: RecordSet,
    column: str,
    classes: Classes,
    classes_YD: np.ndarray,
    embed: EmbedImages,
    *,
    batch_size: int = 64,
    mesh: Mesh | None = None,
) -> Metrics:
    """Zero-shot classification of a labelled record set.

    Args:
      record_set: images or videos.
      column: its label column, for example `label` of a set packed from class folders.
      classes: the classes that are asked for; see `class_numbers` for how the column names them.
      classes_YD: their embeddings.
      embed: a loader's batch -> float [batch_size, D] in the space of the texts.
      batch_size: records at once.
      mesh: of the comparison, as for `zero_shot`.

    Returns:
      As `zero_shot`; an unreadable record counts as wrong.

    Raises:
      ValueError: labels that are missing, have several columns, or name other classes.
    """
    labels_N = class_numbers(load_labels(record_set, column), classes)
    found = embeddings(record_set, embed, batch_size, silent=True)
    return zero_shot(found.rows_ND, labels_N, classes_YD, readable_N=found.readable_N, mesh=mesh)


def class_numbers(labels: Labels, classes: Classes) -> np.ndarray:
    """The labels of a record set as numbers of the classes that are asked for.

    Args:
      labels: one column; its classes are called by WordNet ids, by first names, or by numbers, or
        they have numbers alone.
      classes: what the numbers shall mean.

    Returns:
      int32 [records], -1 = no label.

    Raises:
      ValueError: several columns, or a class that is not among `classes`.
    """
    if labels.values.shape[1] != 1:
        raise ValueError(
            f"labels {labels.name!r} have {labels.values.shape[1]} columns; zero-shot "
            "classification takes one label per image"
        )
    called = labels.classes
    if called is None or all(name.isdecimal() for name in called):
        numbers = range(labels.num_classes) if called is None else map(int, called)
        place = {number: number for number in range(len(classes))}
    elif classes.ids is not None and set(called) <= set(classes.ids):
        numbers, place = called, {name: i for i, name in enumerate(classes.ids)}
    else:
        numbers, place = called, {names[0]: i for i, names in enumerate(classes.names)}
        if len(place) < len(classes):
            raise ValueError(
                f"labels {labels.name!r} name their classes ({called[0]!r}, ...), but some of the "
                f"{len(classes)} classes have the same name: label by WordNet ids, which then "
                "stand before the names in the file of classes, or by numbers"
            )
    table = [place.get(number, -2) for number in numbers]
    if -2 in table:
        unknown = called[table.index(-2)] if called else table.index(-2)
        raise ValueError(
            f"labels {labels.name!r} have the class {unknown!r}, which is none of the "
            f"{len(classes)} classes that are asked for ({classes.names[0][0]!r}, ...)"
        )
    return np.array([*table, -1], np.int32)[labels.values[:, 0]]
