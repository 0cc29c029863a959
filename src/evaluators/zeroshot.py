"""Zero-shot classification: the nearest class by the embedding of its name.

Shapes: N images, D features, Y classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from ..cluster.nearest import unit_rows
from .embedding import EmbedTexts, text_batches
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


def class_numbers(called: Sequence[str], classes: Classes) -> np.ndarray:
    """What examples are called, as numbers of classes.

    A class may be called by its WordNet id, by any of its names, or by its number.

    Args:
      called: what each example's class is called.
      classes: what the numbers mean.

    Returns:
      int32 [N].

    Raises:
      ValueError: a name is that of no class, or of several.
    """
    meanings: dict[str, set[int]] = {}
    for number, names in enumerate(classes.names):
        own_id = () if classes.ids is None else (classes.ids[number],)
        for name in (str(number), *names, *own_id):
            meanings.setdefault(name, set()).add(number)
    for name in dict.fromkeys(called):
        numbers = sorted(meanings.get(name, ()))
        if not numbers:
            raise ValueError(
                f"class {name!r} is none of the {len(classes)} classes that are asked for "
                f"({classes.names[0][0]!r}, ...)"
            )
        if len(numbers) > 1:
            of_several = ", ".join(f"{n} ({classes.names[n][0]!r})" for n in numbers)
            raise ValueError(
                f"class {name!r} may be any of the classes {of_several}: call the examples by "
                "WordNet ids, which then stand before the names in the file of classes, or by "
                "numbers that are the name of no other class"
            )
    return np.array([min(meanings[name]) for name in called], np.int32)
