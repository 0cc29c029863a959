"""Examples that could not be made: counted by kind, listed, and too many of them stop the run."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from pathlib import Path

from ...codec.llava.rows import json_line

_FEWEST = 1000  # examples before a share means anything: one broken file must not end a long run
_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Failure:
    """An example that is not there; nothing takes its place.

    Attributes:
      index: of the example in the data set.
      source: its file and row, for example "codec/train.jsonl row 17 (id v3)".
      kind: of the error.
      reason: its message.
    """

    index: int
    source: str
    kind: str
    reason: str


class TooManyFailures(RuntimeError):
    """The share of failures is above what was allowed."""


class FailureLog:
    """Counts failures and writes them down as they come.

    Args:
      path: JSONL to append to, one per process; it appears with the first failure.
      max_failures: the largest share of examples that may fail, 0 <= share <= 1. Before 1000
        examples were seen it is a share of 1000.
      seen: examples of earlier runs, where one is resumed.
      failed: failures among them.

    Raises:
      ValueError: the share is out of range.
    """

    def __init__(
        self, path: str | Path, max_failures: float, seen: int = 0, failed: int = 0
    ) -> None:
        if not 0 <= max_failures <= 1:
            raise ValueError(f"max_failures = {max_failures} must be a share from 0 to 1")
        self.path = Path(path)
        self.max_failures = max_failures
        self.seen = seen
        self.failed = failed
        self.kinds: collections.Counter[str] = collections.Counter()

    def add(self, failures: Iterable[Failure], seen: int) -> None:
        """Takes note of a batch.

        Args:
          failures: of the batch.
          seen: examples of the batch, those that failed among them.

        Raises:
          TooManyFailures: now there are too many; the message has their kinds, the last ones, and
            the file with the rest.
        """
        failures = list(failures)
        self.seen += seen
        if not failures:
            return
        self.failed += len(failures)
        self.kinds.update(failure.kind for failure in failures)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            for failure in failures:
                file.write(json_line(dataclasses.asdict(failure)))
        if self.failed > self.max_failures * max(self.seen, _FEWEST):
            last = "\n".join(f"  {f.source}: {f.kind}: {f.reason}" for f in failures[-_SHOWN:])
            raise TooManyFailures(
                f"{self.failed} of {self.seen} examples failed ({self}), more than max_failures = "
                f"{self.max_failures} allows; all are listed in {self.path}. The last of them:\n"
                f"{last}"
            )

    def __str__(self) -> str:
        return ", ".join(f"{kind} {count}" for kind, count in sorted(self.kinds.items())) or "none"
