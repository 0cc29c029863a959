"""Watches a run from anywhere that its work directory can be read: every worker in one table.

    codecvit watch WORKDIR [--every 5] [--stall 40]
    codecvit watch WORKDIR --once

WORKDIR is a folder or a URL. A worker whose heartbeats stop is missing: killed, stopped, or cut off
from the folder. One whose step does not advance although it beats is stalled if the others wait for
it. --once looks until every worker has beaten again, prints the table, and exits 0 if all is well
or done, 1 otherwise; without it the table is repeated until the run ends.

The clocks of the hosts are not compared: a worker lives if its counter moves, by the clock of who
watches, and how long a step lasts is measured by its own host.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..files import join, read_bytes
from .heartbeat import FOLDER, beat_url
from .workers import HEALTHY, Beat, Row, Worker, healthy, is_ended, is_lost, judge

STALL_SECONDS = 40.0
SHOWN = 32  # rows of a table; what is wrong comes first
_READERS = 32  # heartbeats that are read at one time


class Watch:
    """Looks at the heartbeats of a run again and again.

    Args:
      workdir: folder or URL of the run.
      stall: seconds without a step after which a worker counts as stalled.
    """

    def __init__(self, workdir: str, stall: float = STALL_SECONDS) -> None:
        self._workdir, self._stall = workdir, stall
        self._run = ""
        self.workers: dict[int, Worker] = {}

    def look(self) -> list[Row]:
        """Reads all heartbeats and judges them.

        Raises:
          ValueError: there are none.
        """
        first = self._read(0)
        now = time.monotonic()
        if first is None and not self.workers:
            raise ValueError(
                f"no heartbeats in {join(self._workdir, FOLDER)}: nothing has begun to train there"
            )
        if first is not None:
            if first["run"] != self._run:  # another start of the run, maybe by fewer processes
                self._run, self.workers = first["run"], {}
            others = range(1, first["processes"])
            with ThreadPoolExecutor(_READERS) as pool:
                for process, beat in enumerate([first, *pool.map(self._read, others)]):
                    self._note(process, beat, now)
        return judge(self.workers, now, self._stall)

    def settled(self) -> bool:
        """Whether each worker has beaten since the watch began, has ended, or is missing."""
        now = time.monotonic()
        return all(
            worker.alive or is_ended(worker) or is_lost(worker, now, self.workers)
            for worker in self.workers.values()
        )

    def ended(self) -> bool:
        """Whether each worker has told its end."""
        return all(is_ended(worker) for worker in self.workers.values())

    def _read(self, process: int) -> Beat | None:
        try:
            return json.loads(read_bytes(beat_url(self._workdir, process)))
        except FileNotFoundError:
            return None
        except ValueError as error:
            if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
                return None  # replaced while it was read from a remote folder
            raise

    def _note(self, process: int, beat: Beat | None, now: float) -> None:
        if beat is not None and beat["run"] != self._run:
            beat = None  # left by an earlier start
        worker = self.workers.setdefault(process, Worker(beat, now))
        if beat is None:
            return
        if worker.beat is None:
            worker.beat, worker.changed = beat, now
        elif beat["beat"] != worker.beat["beat"]:
            worker.beat, worker.changed, worker.alive = beat, now, True


def summary(workdir: str, workers: Mapping[int, Worker], rows: Sequence[Row]) -> str:
    """One line about the run."""
    steps = [row.step for row in rows]
    total = next((w.beat["total_steps"] for w in workers.values() if w.beat), None)
    at = f"step {min(steps)}" if min(steps) == max(steps) else f"steps {min(steps)} to {max(steps)}"
    rates = [row.rate for row in rows if row.rate is not None and row.state == "ok"]
    parts = [f"{len(rows)} worker{'s' * (len(rows) != 1)}", at + (f" of {total}" if total else "")]
    parts += [f"{min(rates):.3g} steps/s"] if rates else []
    for state in dict.fromkeys(row.state for row in rows):
        parts.append(f"{sum(row.state == state for row in rows)} {state}")
    return f"{workdir}: {', '.join(parts)}"


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The table as text, its head first; what is wrong comes first, and long tables are cut."""
    ordered = sorted(rows, key=lambda row: row.state in (*HEALTHY, "waits"))
    table = [("process", "host", "step", "steps/s", "phase", "heartbeat", "state", "")]
    for row in ordered[:SHOWN]:
        rate = "-" if row.rate is None else f"{row.rate:.3g}"
        quiet = "-" if row.quiet is None else f"{row.quiet:.0f} s ago"
        numbers = (str(row.process), row.host, str(row.step), rate, row.phase, quiet)
        table.append((*numbers, row.state, row.text))
    if len(ordered) > SHOWN:
        more = f"and {len(ordered) - SHOWN} more"
        table.append(("", more, *[""] * 6))
    return table


def plain(table: Sequence[Sequence[str]]) -> str:
    """Columns of text."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def coloured(title: str, table: Sequence[Sequence[str]]) -> Table:
    """The same for a terminal."""
    colours = {"ok": "green", "done": "green", "stopped": "yellow", "waits": "yellow"}
    drawn = Table(title=Text(title), title_justify="left")
    for name in table[0]:
        drawn.add_column(name)
    for row in table[1:]:
        style = colours.get(row[6], "red") if row[6] else ""
        drawn.add_row(*(Text(cell) for cell in row[:6]), Text(row[6], style), Text(row[7]))
    return drawn


def main(argv: list[str]) -> int:
    """The verb `watch`."""
    parser = argparse.ArgumentParser(
        prog="codecvit watch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", metavar="WORKDIR")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("--once", action="store_true", help="one table and an exit status")
    parser.add_argument(
        "--stall",
        type=float,
        default=STALL_SECONDS,
        help="seconds without a step that are too long",
    )
    args = parser.parse_args(argv)
    watch = Watch(args.workdir, args.stall)
    try:
        return _once(watch, args.workdir) if args.once else _repeat(watch, args.workdir, args.every)
    except (ValueError, OSError) as error:
        print(f"codecvit watch: {error}", file=sys.stderr)
        return 1


def _once(watch: Watch, workdir: str) -> int:
    rows = watch.look()
    while not watch.settled():
        time.sleep(1)
        rows = watch.look()
    print(summary(workdir, watch.workers, rows))
    print(plain(cells(rows)))
    return 0 if healthy(rows) else 1


def _repeat(watch: Watch, workdir: str, every: float) -> int:
    console = Console()
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    rows = watch.look()
    with live or contextlib.nullcontext():
        while True:
            title, table = summary(workdir, watch.workers, rows), cells(rows)
            if live:
                live.update(coloured(title, table), refresh=True)
            else:
                print(f"{title}\n{plain(table)}\n", flush=True)
            if watch.ended():
                break
            try:
                time.sleep(every)
            except KeyboardInterrupt:
                break
            rows = watch.look()
    return 0 if healthy(rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
