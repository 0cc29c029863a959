"""Which examples make up which batch: of similar length and kind, the same for any number of
processes, from any step on.

A global batch is what one optimiser step sees. It depends on the seed and the epoch alone; the
processes and the micro-batches of accumulation only share it out. Torch is not needed here.

Shape suffixes: E examples.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_SORTED_BATCHES = 50  # batches that are sorted together, as in transformers' LengthGroupedSampler
# Before they are compared, lengths are changed at random by up to this share, and up to this number
# of tokens. Among rows that differ in nothing but a short answer the length tells the answer:
# sorted strictly, whole batches would have the same one.
_JITTER, _TOKENS = 0.03, 16


class LengthGroupedBatches:
    """A `batch_sampler` for torch's DataLoader.

    Every example comes once in an epoch. The last batch of an epoch may be smaller, then some of
    its lists are shorter, or empty; every process gets the same number of lists.

    Args:
      lengths: about how many tokens each example has.
      kinds: an integer per example; batches hold one kind, but for a few of what remains of all.
      global_batch: examples of one optimiser step.
      batch_size: examples of one list, the micro-batch of one process; None: its whole share.
      processes, process: how many share the work, and which of them this is.
      seed: of the order.

    Attributes:
      cursor: global batches since the beginning of training that are done. Iteration goes from it
        to the end of its epoch and leaves it alone: the batches that a loader has taken ahead are
        not done. Whoever trains sets it, and saves it; nothing else needs to be saved.

    Raises:
      ValueError: sizes are out of range, or do not divide the global batch.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        kinds: np.ndarray,
        global_batch: int,
        batch_size: int | None = None,
        processes: int = 1,
        process: int = 0,
        seed: int = 0,
    ) -> None:
        lengths, kinds = np.asarray(lengths), np.asarray(kinds)
        if len(lengths) == 0 or lengths.shape != kinds.shape:
            raise ValueError(
                f"lengths and kinds must be one number per example, got {lengths.shape} and "
                f"{kinds.shape}"
            )
        if not 0 <= process < processes:
            raise ValueError(f"process = {process} must lie in 0..{processes - 1}")
        if batch_size is None:
            batch_size = max(1, global_batch // processes)
        if global_batch < 1 or batch_size < 1 or global_batch % (processes * batch_size):
            raise ValueError(
                f"global_batch = {global_batch} must be a multiple of processes = {processes} "
                f"times batch_size = {batch_size}"
            )
        self.lengths = lengths
        self.kinds = kinds
        self.global_batch = global_batch
        self.batch_size = batch_size
        self.processes = processes
        self.process = process
        self.seed = seed
        self.cursor = 0

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch."""
        return -(-len(self.lengths) // self.global_batch)

    @property
    def accumulation(self) -> int:
        """Lists that one process gets of a global batch."""
        return self.global_batch // (self.processes * self.batch_size)

    def __len__(self) -> int:
        """Lists from the cursor to the end of its epoch."""
        left = self.steps_per_epoch - self.cursor % self.steps_per_epoch
        return left * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """The lists of this process, `accumulation` of them for each global batch."""
        epoch, done = divmod(self.cursor, self.steps_per_epoch)
        for batch in self.global_batches(epoch)[done:]:
            # Processes work side by side on examples of similar length: they wait for the longest.
            for start in range(0, self.global_batch, self.processes * self.batch_size):
                together = batch[start : start + self.processes * self.batch_size]
                yield together[self.process :: self.processes].tolist()

    def global_batches(self, epoch: int) -> list[np.ndarray]:
        """All global batches of an epoch, each sorted by falling length.

        The first holds the longest example: what does not fit into memory shows at once.
        """
        rng = np.random.default_rng([self.seed, epoch])
        size = self.global_batch
        full, rest = [], []
        for kind in np.unique(self.kinds):
            order = rng.permutation(np.flatnonzero(self.kinds == kind))
            whole = len(order) // size * size
            rest.append(order[whole:])
            for start in range(0, whole, size * _SORTED_BATCHES):
                part = order[start : min(start + size * _SORTED_BATCHES, whole)]
                most = np.maximum(self.lengths[part] * _JITTER, _TOKENS)
                jittered = self.lengths[part] + rng.uniform(-1, 1, len(part)) * most
                part = part[np.argsort(-jittered, kind="stable")]
                full += [self._sorted(part[i : i + size]) for i in range(0, len(part), size)]
        mixed = self._sorted(np.concatenate(rest))
        last = len(mixed) % size
        # The smaller batch is cut from the short end, and comes last.
        full += [mixed[i : i + size] for i in range(0, len(mixed) - last, size)]
        full = [full[i] for i in rng.permutation(len(full))]
        if full:
            first = int(np.argmax([self.lengths[batch[0]] for batch in full]))
            full[0], full[first] = full[first], full[0]
        return [*full, mixed[len(mixed) - last :]] if last else full

    def _sorted(self, examples: np.ndarray) -> np.ndarray:
        return examples[np.argsort(-self.lengths[examples], kind="stable")]
