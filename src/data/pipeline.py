"""Record sets -> batches: the Grain pipeline. Only this and mixing.py import Grain.

A batch is the dict of docs/architecture.md. The whole state of a loader is one integer, the number
of examples that all processes together have taken; after a restart with another number of processes
the next global batches hold the same examples, in another order of rows. Every draw is therefore
keyed by (seed, place in the example stream), never by row.
"""

from __future__ import annotations

import collections
import logging
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeVar

import grain
import numpy as np
from absl import flags
from grain.experimental import ElasticIterator

from .augment import AugmentConfig
from .cache import check_orders, orders_of
from .examples import NO_AUGMENT, Batch, Pool, make_examples, make_pool
from .mixing import Mixture, stream
from .records import RecordError, RecordSet

_LOG = logging.getLogger(__name__)
# Batches decoded ahead, and the threads that do it (JPEG decoding releases the GIL). Grain's
# defaults, 500 elements and 16 threads, are meant for single examples: at this place an element
# is a whole batch.
_AHEAD = 4
_THREADS = 2


L = TypeVar("L", bound="Loader")


class Loader:
    """Endless iterator over the batches of one process; made by `make_loader` or `open_loader`.

    Use it in a `with` block or call `close()`: worker processes and shared memory outlive a loader
    that is dropped.

    Attributes:
      unreadable: `index` of the records that came out as rows of weight 0 so far, in this process.
      unreadable_kinds: how many of them for which kind of reason.
      orders: the record sets that it reads, each with its window.
    """

    orders: Sequence[tuple[RecordSet, int]] = ()

    def __init__(self, pool: Pool, mixture: Mixture, iterator: grain.DatasetIterator) -> None:
        self._pool = pool
        self._mixture = mixture
        self._iterator = iterator
        self.unreadable: set[int] = set()
        self.unreadable_kinds: collections.Counter[str] = collections.Counter()

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

    def taken(self) -> list[int]:
        """Examples of each record set that all processes together have taken; sums to the state."""
        return self._mixture.counts(self.get_state())

    def counts(self) -> dict[str, int]:
        """What this process has met so far: `unreadable/KIND`, different records of a kind."""
        return {f"unreadable/{kind}": count for kind, count in self.unreadable_kinds.items()}

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
            self._pool.check(index)
            reason = "readable now"
        except RecordError as error:
            reason = str(error)
            self.unreadable_kinds[error.kind] += 1
        _LOG.warning("record %d counts with weight 0: %s", index, reason)


def make_loader(
    records: RecordSet | Sequence[RecordSet],
    *,
    weights: Sequence[float] | None = None,
    batch_size: int,
    budget: int,
    labels: str | None = None,
    labels_drawn: int = 1,
    image_size: int = 0,
    augment: AugmentConfig = NO_AUGMENT,
    seed: int = 0,
    shuffle: bool = True,
    shuffle_window: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    worker_count: int = 0,
    start_index: int = 0,
    only: Sequence[int] | None = None,
) -> Loader:
    """An endless, resumable loader over one record set, or over several that are mixed.

    Args:
      records: where the records come from. Of several sets the batch's `index` counts the records
        through, one set after the other.
      weights: share of each set among the examples, up to a common factor, exact to an example at
        any place of the stream; None: in proportion to their sizes.
      batch_size: rows of the global batch, over all processes.
      budget: L of the batch; shorter sequences are padded.
      labels: name of a label file, or None: all labels are -1.
      labels_drawn: m of the batch: labels drawn per example of the n stored, without repetition.
      image_size: side in pixels of the view of pictures; 0 takes the size that they were packed
        for.
      augment: what is drawn anew for each example.
      seed: of the order (another one in each epoch) and of all draws.
      shuffle: False keeps the order of the records.
      shuffle_window: records in a row among which the order is drawn; 0: all of a set. For remote
        sets that the cache cannot hold.
      process_index: which process this is...
      process_count: ...of how many; each gets batch_size / process_count rows.
      worker_count: processes that read and decode; 0 uses threads of this one.
      start_index: examples to skip, the state of an earlier loader.
      only: of a single record set, these records alone; without a shuffle in this order.

    Returns:
      The loader.

    Raises:
      ValueError: the set is empty or holds sequences over the budget, the batch does not divide, or
        the labels are missing, too few or made for other records; or records of patches are asked
        for another size or random crops; the sets of a mixture do not fit together; the
        cache cannot hold the shards of remote sets.
    """
    record_sets = [records] if isinstance(records, RecordSet) else list(records)
    if not record_sets:
        raise ValueError("records is empty: name at least one record set")
    if only is not None and (len(record_sets) > 1 or not len(only)):
        raise ValueError(
            f"only = {len(only)} records of {len(record_sets)} sets: name at least one record, of "
            "a single set"
        )
    orders = orders_of(record_sets, shuffle_window, shuffle)
    check_orders(orders)
    pool = make_pool(record_sets, budget, labels, labels_drawn, image_size, augment)
    opened = open_loader(
        pool,
        weights=weights,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        shuffle_window=shuffle_window,
        process_index=process_index,
        process_count=process_count,
        worker_count=worker_count,
        start_index=start_index,
        only=only,
    )
    opened.orders = orders
    return opened


def open_loader(
    pool: Pool,
    *,
    loader: type[L] = Loader,
    weights: Sequence[float] | None,
    batch_size: int,
    seed: int,
    shuffle: bool,
    shuffle_window: int,
    process_index: int,
    process_count: int,
    worker_count: int,
    start_index: int,
    only: Sequence[int] | None = None,
) -> L:
    """A loader over a pool of any examples.

    Args:
      pool: the examples.
      loader: class of what is returned.
      weights, batch_size, seed, shuffle, shuffle_window, process_index, process_count,
        worker_count, start_index, only: as for `make_loader`.

    Raises:
      ValueError: the batch does not divide, or a weight is missing or not positive.
    """
    if process_count < 1 or batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size = {batch_size} must be a positive multiple of "
            f"process_count = {process_count}"
        )
    if weights is not None and len(weights) != len(pool.ranges):
        raise ValueError(
            f"weights = {list(weights)} must hold one number for each of the {len(pool.ranges)} "
            "record sets or other sources"
        )
    ranges = pool.ranges if only is None else [range(len(only))]
    mixture = Mixture([len(part) for part in ranges] if weights is None else weights)
    dataset = stream(ranges, mixture, seed, shuffle, shuffle_window)
    if only is not None:
        dataset = dataset.map(np.asarray(only).__getitem__)
    dataset = dataset.random_map(pool.draw)
    multiprocessing_options = None
    if worker_count:
        # Grain's worker processes read absl flags, which a program without `app.run` never parses.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        multiprocessing_options = grain.MultiprocessingOptions(worker_count)
        dataset = dataset.map(_OutliveSigterm())
    elastic = ElasticIterator(
        dataset,
        batch_size,
        grain.sharding.ShardOptions(process_index, process_count),
        read_options=grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD),
        multiprocessing_options=multiprocessing_options,
    )
    opened = loader(pool, mixture, iter(elastic))
    opened.set_state(start_index)
    return opened


class _OutliveSigterm:
    """Hands elements on; the worker process that it comes to ignores SIGTERM from then on.

    A scheduler signals all processes of a run. Its loaders must go on till the step at which the
    run saves; then they are closed.
    """

    def __call__(self, element: Batch) -> Batch:
        return element

    def __setstate__(self, state: object) -> None:
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def __getstate__(self) -> bool:
        return True  # something, or __setstate__ is not called


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
    examples = make_examples(record_set, budget, labels, None)
    columns = np.arange(examples.labels_drawn)
    chosen = range(len(record_set)) if only is None else only
    for start in range(0, len(chosen), batch_size):
        rows = [examples.at(index, columns) for index in chosen[start : start + batch_size]]
        rows += [examples.empty(-1)] * (batch_size - len(rows))
        yield {key: np.stack([row[key] for row in rows]) for key in rows[0]}
