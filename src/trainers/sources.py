"""The data of a run: one loader per source and phase, and which of them is at its turn."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..data.cache import check_orders
from ..data.pipeline import Loader

Rows = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Phase:
    """From step `from_step` on a source reads this loader."""

    from_step: int
    loader: Loader


class Sources:
    """Batches of every source of a run, for the rows of this process.

    All loaders are open from the start, so that the data of a phase that begins in three weeks are
    found missing today.

    Args:
      sources: by name the phases of each source, in order; the first is named "".

    Raises:
      ValueError: the cache cannot hold the remote shards of all sources at some step.
    """

    def __init__(self, sources: Mapping[str, Mapping[str, Phase]]) -> None:
        self._sources = sources
        self._phase = dict.fromkeys(sources, "")
        for step in {phase.from_step for phases in sources.values() for phase in phases.values()}:
            read = [phases[_phase_at(phases, step)].loader.orders for phases in sources.values()]
            check_orders(itertools.chain.from_iterable(read))

    def next(self, step: int) -> dict[str, Rows]:
        """The batches of step `step`, 1 for the first; steps come in order."""
        rows = {}
        for name, phases in self._sources.items():
            phase = _phase_at(phases, step)
            if phase != self._phase[name]:
                self._loader(name).close()
                self._phase[name] = phase
            rows[name] = next(self._loader(name))
        return rows

    def get_state(self) -> dict[str, Any]:
        """JSON: per source its phase and the examples that all processes have taken in it."""
        return {
            name: {"phase": phase, "examples": self._loader(name).get_state()}
            for name, phase in self._phase.items()
        }

    def taken(self) -> dict[str, list[int]]:
        """Per source the examples of each of its record sets taken in the present phase."""
        return {name: self._loader(name).taken() for name in self._sources}

    def counts(self) -> dict[str, dict[str, int]]:
        """Per source what its loaders have counted in this process, all phases together."""
        found = {}
        for name, phases in self._sources.items():
            total = found[name] = collections.Counter()
            for phase in phases.values():
                total.update(phase.loader.counts())
        return found

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was asked.

        Raises:
          ValueError: a source or phase is not that of the state.
        """
        if state.keys() != self._phase.keys():
            raise ValueError(
                f"the checkpoint was written with the sources {sorted(state)}, the run has "
                f"{sorted(self._phase)}: restore their names, or start a new --workdir with "
                "config.init.checkpoint"
            )
        for name, place in state.items():
            if place["phase"] not in self._sources[name]:
                raise ValueError(
                    f"the checkpoint is in phase {place['phase']!r} of config.sources.{name}, "
                    f"which has {sorted(self._sources[name])}"
                )
            self._phase[name] = place["phase"]
            self._loader(name).set_state(place["examples"])

    def close(self) -> None:
        """Stops all workers; the state stays readable."""
        for phases in self._sources.values():
            for phase in phases.values():
                phase.loader.close()

    def _loader(self, name: str) -> Loader:
        return self._sources[name][self._phase[name]].loader


def _phase_at(phases: Mapping[str, Phase], step: int) -> str:
    return [key for key, phase in phases.items() if phase.from_step <= step][-1]


def source_seeds(seed: int, names: Iterable[str]) -> dict[str, int]:
    """A seed for the order and the draws of each source; that of the first is the run's own.

    With one seed for all of them, record sets of equal size, say two modes of the same videos,
    would come in the same order and with the same draws.
    """
    first, *others = sorted(names)
    drawn = {
        name: int(np.random.SeedSequence([seed, place]).generate_state(1)[0])
        for place, name in enumerate(others, start=1)
    }
    return {first: seed, **drawn}


def on_device(rows: Rows) -> Rows:
    """A batch as the step takes it: jax has no 64-bit integers, so the index becomes 32-bit."""
    return {**rows, "index": rows["index"].astype(np.int32)}
