"""Progress of long runs: a line on the error stream for every twentieth of the work."""

from __future__ import annotations

import sys

_LINES = 20


def tell(line: str, done: int, total: int, before: int | None = None) -> None:
    """Prints a line if `done` begins another twentieth, or is all.

    Args:
      line: with two {} for both numbers.
      done: how much is done.
      total: how much there is.
      before: what was done at the call before; None: one less.
    """
    before = done - 1 if before is None else before
    if done == total or done * _LINES // total > before * _LINES // total:
        print(line.format(done, total), file=sys.stderr, flush=True)
