"""Whether a run has taken its last step: exit status 0 if so, 75 if it stopped on the way.

    python scripts/stage_done.py WORKDIR

A training run that SIGTERM stops saves and ends with status 0, like one that is done. Without jax,
which would take longer to import than this takes to look.
"""

from __future__ import annotations

import json
import sys

from codecvit.files import is_url, join, list_files, read_text

UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h, as in launch_common.sh


def steps_of(workdir: str) -> tuple[int, int]:
    """Steps taken by the newest finished checkpoint, and those of the whole run.

    Args:
      workdir: a folder, or the URL of one.

    Raises:
      OSError: there is no such run.
    """
    total = json.loads(read_text(join(workdir, "config.json")))["total_steps"]
    # As trainers/checkpoint_reading.py tells them: in a bucket an unfinished one has its name.
    mark = "commit_success.txt" if is_url(workdir) else "encoder/"
    steps = []
    for name in list_files(join(workdir, "checkpoints")):
        step, _, rest = name.partition("/")
        if step.isdecimal() and rest.startswith(mark):
            steps.append(int(step))
    return max(steps, default=0), total


def main(argv: list[str]) -> int:
    """The command line; returns the exit status."""
    if len(argv) != 1:
        print("usage: stage_done.py WORKDIR", file=sys.stderr)
        return 2
    try:
        step, total = steps_of(argv[0])
    except (OSError, ValueError) as error:
        print(f"stage_done: {error}", file=sys.stderr)
        return 2
    if step >= total:
        return 0
    print(f"{argv[0]} stopped at step {step} of {total}: run it again and it goes on")
    return UNFINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
