"""Which code a run trains with: in every checkpoint, and in each process' log at each start."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from .. import __version__
from .agreement import code_facts

_ROOT = Path(__file__).resolve().parents[2]
_GIT_SECONDS = 10


@functools.cache
def code_stamp() -> dict[str, str]:
    """Version, git commit, hash of the source files, Python and packages of this process.

    Looked up once: the files may change under a run, what it has imported does not.
    """
    facts = code_facts()
    del facts["host"]
    return {"codecvit": __version__, "git": git_commit(_ROOT), **facts}


def git_commit(folder: Path) -> str:
    """The commit that a checkout stands at.

    Args:
      folder: its top.

    Returns:
      The commit, with "-dirty" if a tracked file differs from it; "" if the folder is no checkout
      (an installed package, a copy without .git) or git cannot tell.
    """
    git = ["git", "-C", str(folder)]
    top = _output([*git, "rev-parse", "--show-toplevel"])
    # An environment inside of somebody's own repository is not a checkout of this one.
    if not top or Path(top).resolve() != folder.resolve():
        return ""
    return _output([*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
