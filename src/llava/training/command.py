"""The command line of `codecvit llava train`, and stopping on SIGTERM."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags

from .config import LlavaTrainConfig, parse_config

NAME = "codecvit llava train"


class StopSignal:
    """Remembers a SIGTERM; what was there to answer it comes back with `close`."""

    def __init__(self) -> None:
        self.received = False
        self._earlier = signal.signal(signal.SIGTERM, self._receive)

    def close(self) -> None:
        signal.signal(signal.SIGTERM, self._earlier)

    def _receive(self, *_: Any) -> None:
        self.received = True


def run_command(
    doc: str, run: Callable[[LlavaTrainConfig, str, bool], Any], argv: list[str]
) -> int:
    """Parses the flags of a run and runs it.

    Args:
      doc: the help text.
      run: trains, given configuration, work directory and whether to stop before the first step.
      argv: arguments after the verb.

    Returns:
      Exit status: 0, 1 for a run that can't go on, 2 for flags that are not understood.
    """
    # ml_collections looks for overrides here: the verb's own arguments, not the process'.
    argv = [re.sub(r"^--(init|dry)-(projector|run)(?==|$)", r"--\1_\2", arg) for arg in argv]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "config file, with arguments after a colon",
        flag_values=values,
        sys_argv=[NAME, *argv],
    )
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    text = "FILE or NAME=FILE,NAME=FILE with projectors' weights, = --config.init_projector"
    flags.DEFINE_string("init_projector", None, text, flag_values=values)
    text = "load model and data, say how many tokens rows have, train nothing"
    flags.DEFINE_bool("dry_run", False, text, flag_values=values)
    if not argv or {"-h", "--help"} & set(argv):
        usage = f"usage: {NAME} --config=FILE.py:ARGUMENTS --workdir=DIR [--config.FIELD=VALUE ...]"
        print(f"{usage}\n\n{doc}\nflags:\n{values.main_module_help()}")
        return 0 if argv else 2
    try:
        rest = values([NAME, *argv])[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections raises any of these for a field that is unknown or of another type.
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    wrong = f"not understood: {rest}" if rest else ""
    if values.config is None or values.workdir is None:
        wrong = "--config and --workdir are needed"
    if wrong:
        print(f"{NAME}: {wrong}", file=sys.stderr)
        return 2
    from ..data.failures import TooManyFailures

    try:
        given = values.config.to_dict()
        if values.init_projector:
            given["init_projector"] = values.init_projector
        run(parse_config(given), values.workdir, values.dry_run)
    except (ValueError, OSError, TooManyFailures) as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        print(f"{NAME}: {kind}{error}", file=sys.stderr)
        return 1
    return 0
