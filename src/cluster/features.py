"""Features of record sets, to cluster or to probe: their descriptors, or an encoder's embeddings.

Shapes: N records, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..codec.descriptor import DESCRIPTOR_SIZE, SIZES
from ..data.pipeline import iterate_once
from ..data.progress import progress
from ..data.record import stored_descriptor
from ..data.records import RecordError, RecordSet

Embed = Callable[[dict[str, np.ndarray]], np.ndarray]

# Sequences are padded to a multiple of this, so that similar sets share one compilation.
LENGTH_STEP = 64


class Features(NamedTuple):
    """Features of a record set, in the order of its records.

    Attributes:
      rows_ND: float32; zeros where a record could not be read.
      readable_N: bool, which rows are real.
    """

    rows_ND: np.ndarray
    readable_N: np.ndarray


def descriptors(record_set: RecordSet, part: str | None = None) -> Features:
    """The training-free descriptors that the records carry.

    Args:
      record_set: the set.
      part: one part of them alone, a key of `codecvit.codec.descriptor.SIZES`; None for all.

    Returns:
      Its features.

    Raises:
      ValueError: no record can be read, their descriptors differ in length, or there is no such
        part.
    """
    found: list[np.ndarray | None] = []
    for index in progress(range(len(record_set)), len(record_set), f"reading {record_set.path}"):
        try:
            found.append(stored_descriptor(record_set.read(index)))
        except RecordError:
            found.append(None)
    lengths = {len(row) for row in found if row is not None}
    if lengths in (set(), {0}):
        raise ValueError(
            f"{record_set.path}: none of the {len(record_set)} records has a readable descriptor: "
            "pack again, or give --encoder"
        )
    if len(lengths) > 1:
        raise ValueError(
            f"{record_set.path}: descriptors of different lengths {sorted(lengths)}: "
            "pack all files with one version"
        )
    columns = slice(None) if part is None else part_columns(part, max(lengths), record_set.path)
    zeros = np.zeros(lengths.pop(), np.float32)
    rows_ND = np.stack([zeros if row is None else row for row in found])[:, columns]
    return Features(rows_ND, np.array([row is not None for row in found]))


def part_columns(part: str, length: int, path: Path) -> slice:
    """Where a part lies in descriptors of this length."""
    if part not in SIZES:
        raise ValueError(f"part = {part!r} must be one of {', '.join(SIZES)}")
    if length != DESCRIPTOR_SIZE:
        raise ValueError(
            f"{path}: descriptors have {length} numbers, not {DESCRIPTOR_SIZE}: pack again"
        )
    names = list(SIZES)
    start = sum(SIZES[name] for name in names[: names.index(part)])
    return slice(start, start + SIZES[part])


def embeddings(
    record_set: RecordSet,
    embed: Embed,
    batch_size: int,
    silent: bool = False,
    only: Sequence[int] | None = None,
) -> Features:
    """The embeddings that an encoder gives the records.

    Args:
      record_set: the set.
      embed: batch of `iterate_once` -> float32 [batch_size, D], as `Encoder.embed`.
      batch_size: records at once.
      silent: report no progress.
      only: numbers of the records to embed; all of them by default.

    Returns:
      Its features.

    Raises:
      ValueError: the set is empty, or its patches are not of the encoder's size.
    """
    budget = -(-record_set.manifest["tokens"]["max"] // LENGTH_STEP) * LENGTH_STEP
    batches = iterate_once(record_set, batch_size, budget, only=only)
    rows, readable = [], []
    count = -(-len(record_set if only is None else only) // batch_size)
    if not silent:
        batches = progress(batches, count, f"embedding {record_set.path}")
    for batch in batches:
        real_B = batch["index"] >= 0  # the last batch is filled up
        known_B = batch["weight"][real_B] > 0
        rows.append(np.where(known_B[:, None], embed(batch)[real_B], np.float32(0)))
        readable.append(known_B)
    return Features(np.concatenate(rows), np.concatenate(readable))


def encoder_embed(path: str | Path) -> Embed:
    """The `embed` of a trained or exported encoder.

    Args:
      path: what `codecvit.load` takes.

    Returns:
      batch -> float32 [B, D].

    Raises:
      ValueError: there is no encoder at `path`.
    """
    # Imported here: descriptors need neither a model nor a checkpoint reader.
    from ..convert.load import load

    return load(path).embed
