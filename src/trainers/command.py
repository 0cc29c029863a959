"""The command line that every trainer has: a config file, overrides, a work directory."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from ..files import PathOrUrl, join
from ..mirror import Mirror
from . import mesh as meshes
from .agreement import NOTHING, require_agreement
from .heartbeat import beating
from .preemption import TrainingStopped
from .stamp import code_stamp

LOG_FOLDER = "logs"
Config = TypeVar("Config")


def run_command(
    name: str,
    doc: str,
    parse: Callable[[dict[str, Any]], Config],
    run: Callable[[Config, str], Any],
    argv: list[str],
    dry_run: Callable[[Config], str] | None = None,
) -> int:
    """Parses the flags of a training run and runs it.

    Args:
      name: what stands before a message.
      doc: the help text.
      parse: checks a config file's values and freezes them.
      run: trains, given configuration and work directory.
      argv: arguments after the verb.
      dry_run: tells about the run of a configuration without data; None offers no such flag.

    Returns:
      Exit status: 0, 1 for a run that can't go on, 2 for flags that are not understood.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "config file, with arguments after a colon", flag_values=values
    )
    flags.DEFINE_string("workdir", None, "folder of the run, or gs:// URL", flag_values=values)
    if dry_run:
        flags.DEFINE_bool("dry_run", False, "report on the run, train nothing", flag_values=values)
        flags.DEFINE_integer(
            "devices", 0, "of a dry run, 0: those that are here", flag_values=values
        )
    if not argv or {"-h", "--help"} & set(argv):
        print(f"{doc}\nflags:\n{values.main_module_help()}")
        return 0 if argv else 2
    argv = ["--dry_run" if arg == "--dry-run" else arg for arg in argv]
    try:
        rest = values([name, *argv])[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections raises any of these for a field that is unknown or of another type.
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    dry, devices = (values.dry_run, values.devices) if dry_run else (False, 0)
    wrong = f"not understood: {rest}" if rest else ""
    if values.config is None or (values.workdir is None and not dry):
        wrong = "--config and --workdir are needed"
    elif devices and not dry:
        wrong = "--devices goes with --dry-run"
    if wrong:
        print(f"{name}: {wrong}", file=sys.stderr)
        return 2
    agreed = False
    try:
        prepare_jax(values.config, devices)
        if dry_run and dry:
            print(dry_run(parse(values.config.to_dict())))
            return 0
        meshes.start_processes()
        start = require_agreement(values.config.to_dict(), values.workdir)
        agreed = True
        config = parse(values.config.to_dict())
        process, processes = jax.process_index(), jax.process_count()
        with process_log(values.workdir), beating(values.workdir, start, process, processes):
            run(config, values.workdir)
    except (ValueError, TrainingStopped) as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        if agreed and not isinstance(error, TrainingStopped) and jax.process_count() > 1:
            _leave()  # maybe this process alone: its data are missing
        return 1
    except OSError as error:
        # A file that cannot be read, or a failed save, after which threads of Orbax wait minutes
        # for a folder that never came: an ordinary exit would wait for them, and so hold the
        # machine and, of several processes, keep the others from noticing.
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        _leave()
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).strip().split("\n")[0]
        print(
            f"{name}: process {jax.process_index()} of {jax.process_count()} stops: {reason}\n"
            "If this tells of a connection or a peer, another process is gone or unreachable: see "
            f"{values.workdir}/{LOG_FOLDER}",
            file=sys.stderr,
            flush=True,
        )
        _leave()
    except Exception:
        if not agreed or jax.process_count() == 1:
            raise
        # Whatever it is, such as a worker of the loader that was killed for its memory.
        traceback.print_exc()
        _leave()
    return 0


def _leave() -> NoReturn:
    """Ends this process at once.

    An ordinary exit would wait at a barrier, for five minutes, for the other processes: they may be
    gone, or wait in a collective for this one, which they miss only once its heartbeats have ended.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def prepare_jax(config: ConfigDict, devices: int = 0) -> None:
    """Sets what jax reads when it first looks at its devices.

    Args:
      config: its field `deterministic`.
      devices: pretend to have so many, for a dry run; 0 takes those that are there.
    """
    if config.get("deterministic"):
        named = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{named} --xla_gpu_deterministic_ops=true".strip()
    if devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)


@contextlib.contextmanager
def process_log(workdir: PathOrUrl) -> Iterator[None]:
    """Also writes what the package logs to WORKDIR/logs/process-NNN.log, a file per process.

    Each start begins with a line that says on which host and with which code it runs.
    """
    mirror, name = Mirror(join(workdir, LOG_FOLDER)), f"process-{jax.process_index():03d}.log"
    mirror.fetch(name)
    handler = logging.FileHandler(mirror.folder / name, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("codecvit")
    logger.addHandler(handler)
    code = ", ".join(f"{name} {value or NOTHING}" for name, value in code_stamp().items())
    place = f"host {socket.gethostname()}, process {jax.process_index()} of {jax.process_count()}"
    # Into the file alone, as below: the terminal tells what the run does.
    fields = {"name": logger.name, "levelname": "INFO", "msg": f"start on {place}: {code}"}
    handler.handle(logging.makeLogRecord(fields))
    try:
        yield
    except Exception:
        # Into the file alone: who started the run is told once, in a line.
        fields = {"name": logger.name, "levelname": "ERROR", "msg": "the run ends"}
        handler.handle(logging.makeLogRecord({**fields, "exc_info": sys.exc_info()}))
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()
        mirror.close()
