"""Whether a run has taken its last step: exit status 0 if so, 75 if it stopped on the way.

    python scripts/stage_done.py WORKDIR

A training run that SIGTERM stops saves and ends with status 0, like one that is done. Standard
library only, so that asking costs nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h, as in launch_common.sh


def steps_of(workdir: Path) -> tuple[int, int]:
    """Steps taken by the newest finished checkpoint, and those of the whole run.

    Raises:
      OSError: there is no such run.
    """
    total = json.loads((workdir / "config.json").read_text())["total_steps"]
    steps = [
        int(path.name)
        for path in (workdir / "checkpoints").iterdir()
        if path.name.isdecimal() and (path / "encoder").is_dir()
    ]
    return max(steps, default=0), total


def main(argv: list[str]) -> int:
    """The command line; returns the exit status."""
    if len(argv) != 1:
        print("usage: stage_done.py WORKDIR", file=sys.stderr)
        return 2
    try:
        step, total = steps_of(Path(argv[0]))
    except OSError as error:
        print(f"stage_done: {error}", file=sys.stderr)
        return 2
    if step >= total:
        return 0
    print(f"{argv[0]} stopped at step {step} of {total}: run it again and it goes on")
    return UNFINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
