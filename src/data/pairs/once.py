"""Every pair once, in order, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...sequence import PatchSequence
from ..examples import Batch
from .loader import picture_sequence
from .records import RecordPairs
from .source import PairError, PairSource

# Sequences of records of patches are padded to a multiple of this.
_LENGTH_STEP = 64


def iterate_pairs_once(
    source: PairSource, batch_size: int, *, patch: int, image_size: int
) -> Iterator[Batch]:
    """What a model sees of each pair, without its texts.

    Args:
      source: the pairs; pictures, or records of patches of side `patch`.
      batch_size: rows of every batch; the last one is filled up with rows of weight 0 and index -1.
      patch: side of a patch in pixels.
      image_size: side in pixels of the centre that is shown of a picture.

    Yields:
      `patches`, `positions`, `length`, `weight`, `index` as of a loader; a pair that cannot be used
      has weight 0 and its index.
    """
    budget = (image_size // patch) ** 2
    if isinstance(source, RecordPairs) and not source.pictures:
        longest = source.record_set.manifest["tokens"]["max"]
        budget = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
    for start in range(0, len(source), batch_size):
        batch = _empty(batch_size, budget, patch)
        for row, index in enumerate(range(start, min(start + batch_size, len(source)))):
            batch["index"][row] = index
            try:
                sequence = _sequence(source, index, patch, image_size)
            except PairError:
                continue
            length = len(sequence)
            batch["patches"][row, :length] = sequence.flat()
            batch["positions"][row, :length] = sequence.positions
            batch["length"][row], batch["weight"][row] = length, 1
        yield batch


def _sequence(source: PairSource, index: int, patch: int, image_size: int) -> PatchSequence:
    pair = source.read(index)
    if pair.record is None:
        return picture_sequence(pair, image_size, patch)
    if pair.record.sequence.patch != patch:
        raise PairError(pair.key, "undecodable", f"has patches of {pair.record.sequence.patch}")
    return pair.record.sequence


def _empty(batch_size: int, budget: int, patch: int) -> Batch:
    return {
        "patches": np.zeros((batch_size, budget, patch**2 * 3), np.uint8),
        "positions": np.zeros((batch_size, budget, 3), np.int32),
        "length": np.ones(batch_size, np.int32),
        "weight": np.zeros(batch_size, np.float32),
        "index": np.full(batch_size, -1, np.int64),
    }
