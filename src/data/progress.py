"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Value = TypeVar("Value")

_LINES = 10  # plain lines for a whole run


def progress(values: Iterable[Value], total: int, what: str) -> Iterator[Value]:
    """Passes values on and reports to the error stream how many have come.

    Args:
      values: the values.
      total: how many there will be.
      what: the word before the counts.

    Yields:
      The values.
    """
    if sys.stderr.isatty():
        columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total)
            for value in values:
                bar.advance(task)
                yield value
        return
    for count, value in enumerate(values, start=1):
        if count * _LINES // total > (count - 1) * _LINES // total:
            print(f"{what} {count}/{total}", file=sys.stderr, flush=True)
        yield value
