"""Rows of a feature matrix on the devices, a block at a time.

Shapes: N rows, D features, R rows of a block with padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .nearest import unit_rows

# A matrix below this stays on the devices; a larger one, such as a memory-mapped file, passes
# through them in blocks of this size.
BLOCK_BYTES = 2**28


class Block(NamedTuple):
    """Some rows: their numbers on the host, unit rows [R, D] and weights [R] over the devices."""

    index: np.ndarray | slice
    rows_RD: jax.Array
    weight_R: jax.Array


class RowBlocks:
    """A matrix, in memory or memory-mapped, as unit rows over the devices of a mesh.

    Args:
      features_ND: finite float rows; never copied as a whole where they take several blocks.
      mesh: its devices share the rows of a block.
      chunk: rows that a device takes at once.
      block_rows: rows of a block; by default as many as `BLOCK_BYTES` hold, or all of them.

    Attributes:
      width: D.
      chunk: rows that a device takes at once, evened out.
    """

    def __init__(
        self, features_ND: np.ndarray, mesh: Mesh, chunk: int, block_rows: int | None = None
    ) -> None:
        self._features, self._mesh = features_ND, mesh
        total, self.width = features_ND.shape
        block = min(total, block_rows or max(1, BLOCK_BYTES // (4 * self.width)))
        local = math.ceil(block / mesh.size)
        # Even chunks: little padding.
        self.chunk = math.ceil(local / math.ceil(local / min(chunk, local)))
        self._padded = math.ceil(block / (mesh.size * self.chunk)) * mesh.size * self.chunk
        self._step = block  # never rounded up: a mini-batch is the same on every mesh
        self._resident: Block | None = None

    def __len__(self) -> int:
        return len(self._features)

    def __iter__(self) -> Iterator[Block]:
        """All rows in order."""
        if self._step >= len(self):
            self._resident = self._resident or self._load(slice(0, len(self)))
            yield self._resident
            return
        for start in range(0, len(self), self._step):
            yield self._load(slice(start, min(start + self._step, len(self))))

    def shuffled(self, generator: np.random.Generator) -> Iterator[Block]:
        """All rows once, each block a random part of them."""
        order = generator.permutation(len(self))
        for start in range(0, len(self), self._step):
            yield self._load(np.sort(order[start : start + self._step]))

    def take(self, index: np.ndarray) -> np.ndarray:
        """Some unit rows, on the host."""
        return unit_rows(self._features[index])

    def _load(self, index: np.ndarray | slice) -> Block:
        rows = unit_rows(self._features[index], first=index)
        missing = self._padded - len(rows)
        weight = np.pad(np.ones(len(rows), np.float32), (0, missing))
        place = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        rows_RD = jax.device_put(np.pad(rows, ((0, missing), (0, 0))), place)
        return Block(index, rows_RD, jax.device_put(weight, place))
