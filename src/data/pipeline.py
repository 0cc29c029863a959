"""Record sets -> batches: the Grain pipeline. Nothing else in the package imports Grain.

A batch is the dict of docs/architecture.md. The whole state of a loader is one integer, the number
of examples that all processes together have taken; after a restart with another number of processes
the next global batches hold the same examples, in another order of rows. Every draw is therefore
keyed by (seed, place in the example stream), never by row.

Shape suffixes: B rows of this process, L token budget, K = P*P*3 values of a patch, M labels drawn,
N labels stored.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from types import TracebackType

import grain
import numpy as np
from absl import flags
from grain.experimental import ElasticIterator

from ..sequence import PatchSequence
from .augment import AugmentConfig, flip_sequence
from .labels import load_labels
from .pictures import crop_picture
from .record import PICTURE
from .records import RecordError, RecordSet

Batch = dict[str, np.ndarray]

_LOG = logging.getLogger(__name__)
_NO_AUGMENT = AugmentConfig()
# Batches decoded ahead, and the threads that do it (JPEG decoding releases the GIL). Grain's
# defaults, 500 elements and 16 threads, are meant for single examples: at this place an element
# is a whole batch.
_AHEAD = 4
_THREADS = 2


@dataclasses.dataclass(frozen=True, eq=False)
class _Examples:
    """Turns a record index into one row of a batch; travels to worker processes."""

    record_set: RecordSet
    budget: int
    labels: np.ndarray | None
    labels_drawn: int
    image_size: int
    augment: AugmentConfig

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        stored = self.labels_drawn if self.labels is None else self.labels.shape[1]
        return self.at(index, rng.choice(stored, self.labels_drawn, replace=False), rng)

    def at(
        self, index: int, columns_M: np.ndarray, rng: np.random.Generator | None = None
    ) -> Batch:
        """Record `index` with the labels of these columns; weight 0 if it cannot be read.

        With a generator it is augmented.
        """
        try:
            sequence = self._sequence(index, rng)
            self._check(index, sequence)
        except RecordError:
            return self.empty(index)
        row = self.empty(index)
        length = len(sequence)
        row["patches"][:length] = sequence.flat()
        row["positions"][:length] = sequence.positions
        row["length"] = np.int32(length)
        row["weight"] = np.float32(1)
        if self.labels is not None:
            row["labels"] = self.labels[index, columns_M]
        return row

    def _sequence(self, index: int, rng: np.random.Generator | None) -> PatchSequence:
        if rng is None:
            return self.record_set[index].sequence
        record = self.record_set.record(
            index, lambda image: crop_picture(image, self.image_size, self.augment, rng)
        )
        if self.augment.flip and rng.uniform() < self.augment.flip:
            return flip_sequence(record.sequence, record.view[1] // record.sequence.patch)
        return record.sequence

    def empty(self, index: int) -> Batch:
        """A row that counts for nothing; of length 1, as attention over no token gives NaN."""
        patch = self.record_set.manifest["patch"]
        return {
            "patches": np.zeros((self.budget, patch * patch * 3), np.uint8),
            "positions": np.zeros((self.budget, 3), np.int32),
            "length": np.int32(1),
            "labels": np.full(self.labels_drawn, -1, np.int32),
            "weight": np.float32(0),
            "index": np.int64(index),
        }

    def _check(self, index: int, sequence: PatchSequence) -> None:
        patch = self.record_set.manifest["patch"]
        if len(sequence) > self.budget or sequence.patch != patch:
            raise RecordError(
                f"record {index} of {self.record_set.path} has {len(sequence)} patches of side "
                f"{sequence.patch}, expected at most {self.budget} of side {patch}"
            )


class Loader:
    """Endless iterator over the batches of one process; made by `make_loader`.

    Use it in a `with` block or call `close()`: worker processes and shared memory outlive a loader
    that is dropped.

    Attributes:
      unreadable: indices of the records that came out as rows of weight 0 so far, in this process.
    """

    def __init__(self, record_set: RecordSet, iterator: grain.DatasetIterator) -> None:
        self._record_set = record_set
        self._iterator = iterator
        self.unreadable: set[int] = set()

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        for index in batch["index"][batch["weight"] == 0].tolist():
            self._report(index)
        return batch

    def get_state(self) -> int:
        """Examples that all processes together have taken: the same number in each of them."""
        return self._iterator.get_state()["global_next_index"]

    def set_state(self, examples: int) -> None:
        """Continues after the first `examples` examples of the stream, whoever took them."""
        self._iterator.set_state({"global_next_index": examples})

    def close(self) -> None:
        """Stops the workers; the state stays readable."""
        # Setting the state lets Grain close and drop the inner iterator. Its own `close` keeps it,
        # and it then prints a traceback when the interpreter ends.
        self.set_state(self.get_state())

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _report(self, index: int) -> None:
        """Logs an unreadable record, once; it is read again, as a row carries no reason."""
        if index in self.unreadable:
            return
        self.unreadable.add(index)
        try:
            self._record_set[index]
            reason = "readable now"
        except RecordError as error:
            reason = str(error)
        _LOG.warning("record %d counts with weight 0: %s", index, reason)


def make_loader(
    record_set: RecordSet,
    *,
    batch_size: int,
    budget: int,
    labels: str | None = None,
    labels_drawn: int = 1,
    image_size: int = 0,
    augment: AugmentConfig = _NO_AUGMENT,
    seed: int = 0,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    worker_count: int = 0,
    start_index: int = 0,
) -> Loader:
    """An endless, resumable loader over a record set.

    Args:
      record_set: where the records come from.
      batch_size: rows of the global batch, over all processes.
      budget: L of the batch; shorter sequences are padded.
      labels: name of a label file, or None: all labels are -1.
      labels_drawn: m of the batch: labels drawn per example of the n stored, without repetition.
      image_size: side in pixels of the view of pictures; 0 takes the size that they were packed
        for.
      augment: what is drawn anew for each example.
      seed: of the order (another one in each epoch) and of all draws.
      shuffle: False keeps the order of the records.
      process_index: which process this is...
      process_count: ...of how many; each gets batch_size / process_count rows.
      worker_count: processes that read and decode; 0 uses threads of this one.
      start_index: examples to skip, the state of an earlier loader.

    Returns:
      The loader.

    Raises:
      ValueError: the set is empty or holds sequences over the budget, the batch does not divide, or
        the labels are missing, too few or made for other records; or records of patches are asked
        for another size or random crops.
    """
    if process_count < 1 or batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size = {batch_size} must be a positive multiple of "
            f"process_count = {process_count}"
        )
    examples = _make_examples(record_set, budget, labels, labels_drawn, image_size, augment)
    dataset = grain.MapDataset.range(len(record_set)).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()
    # After `repeat` the random map sees the place in the endless stream: each epoch draws anew.
    dataset = dataset.repeat().random_map(examples)
    multiprocessing_options = None
    if worker_count:
        # Grain's worker processes read absl flags, which a program without `app.run` never parses.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        multiprocessing_options = grain.MultiprocessingOptions(worker_count)
    elastic = ElasticIterator(
        dataset,
        batch_size,
        grain.sharding.ShardOptions(process_index, process_count),
        read_options=grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD),
        multiprocessing_options=multiprocessing_options,
    )
    loader = Loader(record_set, iter(elastic))
    loader.set_state(start_index)
    return loader


def iterate_once(
    record_set: RecordSet,
    batch_size: int,
    budget: int,
    labels: str | None = None,
    only: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Every record once, in order, for evaluation and embedding.

    Args:
      record_set: where the records come from.
      batch_size: rows of every batch; the last one is filled up with rows of weight 0 and index -1.
      budget: L of the batch.
      labels: name of a label file, or None; all n labels of a record are given, in their stored
        order.
      only: these records alone, in this order; all of them by default.

    Yields:
      Batches as a loader's. An unreadable record has weight 0 and its index.

    Raises:
      ValueError: as `make_loader`.
    """
    examples = _make_examples(record_set, budget, labels, None)
    columns = np.arange(examples.labels_drawn)
    chosen = range(len(record_set)) if only is None else only
    for start in range(0, len(chosen), batch_size):
        rows = [examples.at(index, columns) for index in chosen[start : start + batch_size]]
        rows += [examples.empty(-1)] * (batch_size - len(rows))
        yield {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _make_examples(
    record_set: RecordSet,
    budget: int,
    labels: str | None,
    labels_drawn: int | None,
    image_size: int = 0,
    augment: AugmentConfig = _NO_AUGMENT,
) -> _Examples:
    """Checks what can be checked before the first batch; `labels_drawn` None takes all stored."""
    if len(record_set) == 0:
        raise ValueError(f"record set {record_set.path} is empty")
    longest = record_set.manifest["tokens"]["max"]
    patch, packed_size = record_set.manifest["patch"], record_set.manifest["size"]
    if record_set.manifest.get("storage") == PICTURE:
        image_size = image_size or packed_size
        if image_size < patch or image_size % patch:
            raise ValueError(f"image_size = {image_size} must be a multiple of the patch {patch}")
        longest = (image_size // patch) ** 2
    elif image_size not in (0, packed_size) or augment.crops:
        raise ValueError(
            f"{record_set.path} holds patches of size {packed_size}, which can be flipped, but "
            f"neither cropped (augment = {augment}) nor shown at image_size = {image_size}: pack "
            "images for that, or videos at that size"
        )
    if longest > budget:
        raise ValueError(
            f"budget = {budget} is below the longest sequence of {record_set.path} ({longest} "
            f"patches): raise the budget to at least {longest} or pack with a smaller one"
        )
    values = None if labels is None else load_labels(record_set, labels).values
    stored = 1 if values is None else values.shape[1]
    drawn = stored if labels_drawn is None else labels_drawn
    if drawn < 1 or (values is not None and drawn > stored):
        raise ValueError(
            f"labels_drawn = {drawn} must lie in 1..{stored}, the labels that {labels!r} stores "
            "per record"
        )
    return _Examples(record_set, budget, values, drawn, image_size, augment)
