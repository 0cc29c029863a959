"""Passes over some records of a set, each seen once: scores of the heads, features of the encoder.

Shape suffixes: R heads, B batch over all processes, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ...data.pipeline import make_loader
from ...data.records import RecordSet
from ..mesh import batch_part, put_batch
from .config import AttentiveProbeConfig
from .encoders import Features, FrozenEncoder, mean_of_tokens


class Seen(NamedTuple):
    """What one batch gave; every process has all of its rows.

    Attributes:
      index: int [B], numbers of the records.
      readable: bool [B].
      scores: float32 [R, B, C].
      features: `mean`, of our encoders also `pooled`, float32 [B, D]; only where asked for.
    """

    index: np.ndarray
    readable: np.ndarray
    scores: np.ndarray
    features: dict[str, np.ndarray]


class Passes:
    """Looks at records any number of times.

    Args:
      config: batch size, workers.
      records: the set.
      chosen: numbers of the records to look at.
      budget: tokens of a row.
      encoder: what sees them.
      scores: as `probe_step.make_scores` makes it.
      mesh: the run's mesh.
    """

    def __init__(
        self,
        config: AttentiveProbeConfig,
        records: RecordSet,
        chosen: Sequence[int],
        budget: int,
        encoder: FrozenEncoder,
        scores: Callable[[Any, Features], jax.Array],
        mesh: Mesh,
    ) -> None:
        self._encode, self._mesh, self._size = encoder.encode, mesh, len(records)
        self._batches = -(-len(chosen) // config.batch_size)
        part, parts = batch_part(mesh)
        self._loader = make_loader(
            records,
            batch_size=config.batch_size,
            budget=budget,
            shuffle=False,
            only=chosen,
            process_index=part,
            process_count=parts,
            worker_count=config.loader_workers,
        )

        def look(heads: Any, features: Features, rows: Features, keep: bool) -> dict[str, Any]:
            found = {**rows, "scores": scores(heads, features)}
            if keep:
                kept = {"mean": mean_of_tokens(features)}
                kept |= {key: features[key] for key in ("pooled",) if key in features}
                found["features"] = jax.tree.map(lambda x: x.astype(np.float32), kept)
            return found

        # Replicated: every process gets the rows of all.
        whole = NamedSharding(mesh, PartitionSpec())
        self._look = jax.jit(look, static_argnames="keep", out_shardings=whole)

    def __call__(self, heads: Any, features: bool = False) -> Iterator[Seen]:
        """Looks at every record once, in no certain order.

        Args:
          heads: parameters of R heads, stacked.
          features: also keep those of the encoder.
        """
        self._loader.set_state(0)
        done = np.zeros(self._size, bool)
        for _ in range(self._batches):
            rows = next(self._loader)
            # Records have fewer than 2^31 numbers, and jax no 64 bits.
            about = {"index": rows["index"].astype(np.int32), "readable": rows["weight"] > 0}
            about = put_batch(about, self._mesh)
            found = jax.device_get(self._look(heads, self._encode(rows), about, keep=features))
            # The last batch is filled up with records from the beginning: they don't count again.
            index, first = np.unique(found["index"], return_index=True)
            new = first[~done[index]]
            done[index] = True
            yield Seen(
                found["index"][new],
                found["readable"][new],
                found["scores"][:, new],
                {key: rows_BD[new] for key, rows_BD in found.get("features", {}).items()},
            )
        self._loader.close()

    def close(self) -> None:
        """Stops the workers."""
        self._loader.close()
