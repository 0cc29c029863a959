"""The checkpoints of a run: what is written, and how the run goes on from it.

Reading one of another run stands in checkpoint_reading.py. No other file uses Orbax v1, but for
that of convert/openclip which reads published weights.

A checkpoint `checkpoints/STEP` holds the trees `encoder` (what `codecvit.load` and the export read;
a probe's has none), `ema` (its moving average, if there is one) and `train` (heads, optimiser,
counters), and JSON metadata: the resolved configuration, the position of every data source, the
code that wrote it (stamp.py). Saving is asynchronous and atomic; a failed save stops the run at the
next one.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from ..files import PathOrUrl, exists, join, make_folder, move_folder
from .checkpoint_reading import (
    FOLDER,
    TornCheckpoint,
    checkpoint_path,
    outside_encoder,
    require_same,
    stored,
)
from .mesh import path_name
from .run_config import CheckpointConfig

TORN_FOLDER = "torn"
# How long to wait for a folder that shows one process less than another: NFS may take a minute.
LISTING_TRIES, LISTING_SECONDS = 13, 5.0

_LOG = logging.getLogger(__name__)


class SaveFailed(OSError):
    """A checkpoint that could not be written; earlier ones are not touched."""


class Checkpoints:
    """The checkpoints of one work directory.

    Args:
      workdir: the run's folder or gs:// URL; checkpoints lie in `workdir/checkpoints/STEP`.
      config: which are kept.
    """

    def __init__(self, workdir: PathOrUrl, config: CheckpointConfig) -> None:
        policies = ocp.training.preservation_policies
        kept: list[Any] = [policies.LatestN(config.keep)]
        if config.keep_every_steps:
            kept.append(policies.EveryNSteps(config.keep_every_steps))
        self._workdir = checkpoint_path(workdir)
        self._checkpointer = ocp.training.Checkpointer(
            self._workdir / FOLDER,
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )
        self._pending: tuple[int, Any] | None = None
        self._failed = False

    @property
    def latest_step(self) -> int | None:
        """Step of the newest finished checkpoint, None where there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Starts writing a checkpoint; waits for an earlier one that is still under way.

        Args:
          step: the number of steps that the state has seen.
          state: the training state of docs/architecture.md.
          metadata: JSON values stored beside it.

        Raises:
          SaveFailed: this save cannot begin, or the earlier, asynchronous one went wrong.
        """
        self.wait()
        if self.latest_step == step:
            return
        trees = _split(state)
        # So that a torn checkpoint can be told from one of another configuration.
        arrays = {name: len(jax.tree.leaves(tree)) for name, tree in trees.items()}
        with self._failure_told(step):
            under_way = self._checkpointer.save_checkpointables_async(
                step, trees, force=True, custom_metadata={**metadata, "arrays": arrays}
            )
        self._pending = step, under_way

    def restore(
        self, abstract_state: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """The newest whole checkpoint, laid out as the abstract state says, whatever mesh wrote it.

        A torn checkpoint is passed over for the one before it and moved to WORKDIR/torn/STEP.

        Args:
          abstract_state: the training state as ShapeDtypeStructs with the shardings of the current
            mesh.

        Returns:
          The state and the metadata that was saved with it; (None, {}) where there is no
          checkpoint.

        Raises:
          ValueError: the checkpoint does not hold this state, and the message names what differs;
            or there are checkpoints, and all of them are torn; or the processes do not see the
            same ones.
        """
        torn = []
        while (step := self._newest_for_all()) is not None:
            folder = self._workdir / FOLDER / str(step)
            found, problem = None, ""
            try:
                found = self._load(step, folder, abstract_state)
            except TornCheckpoint as error:
                problem = str(error)
            # Each process reads its own part: what is torn for one is torn for all.
            if not any(_every_process(bool(problem))):
                assert found is not None
                return found
            _LOG.warning("%s is passed over: %s", folder, problem or "torn for another process")
            self._move_aside(step, folder)
            torn.append(step)
        if torn:
            raise ValueError(
                f"no whole checkpoint is left; the torn ones, {torn}, lie in "
                f"{self._workdir / TORN_FOLDER}"
            )
        return None, {}

    def wait(self) -> None:
        """Blocks until the checkpoint under way is on disk; raises SaveFailed if that failed."""
        if self._pending is not None:
            (step, under_way), self._pending = self._pending, None
            with self._failure_told(step):
                under_way.result()

    def close(self) -> None:
        """As `wait`. After a failed save it does nothing: Orbax would raise its error once more."""
        if not self._failed:
            self.wait()
            self._checkpointer.close()

    @contextlib.contextmanager
    def _failure_told(self, step: int) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as error:  # TensorStore raises ValueError for a full disk
            self._failed = True
            raise SaveFailed(
                f"the checkpoint of step {step} could not be written to {self._workdir / FOLDER}: "
                f"{_first_line(error)}. Earlier ones are whole: remove the cause and start again"
            ) from error

    def _newest_for_all(self) -> int | None:
        """`latest_step`, which all processes must see alike: else each would load its own."""
        for _ in range(LISTING_TRIES):
            steps = _every_process(-1 if (step := self.latest_step) is None else step)
            if len(set(steps)) == 1:
                return step
            # A shared folder may show a new checkpoint to some hosts later than to others.
            time.sleep(LISTING_SECONDS)
            self._checkpointer.reload()
        seen = ", ".join(f"process {i}: {n if n >= 0 else 'none'}" for i, n in enumerate(steps))
        raise ValueError(
            f"the processes see different newest checkpoints in {self._workdir / FOLDER} ({seen}): "
            "--workdir must be one folder that all of them share"
        )

    def _load(
        self, step: int, folder: Path, abstract_state: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        abstract = _split(abstract_state)
        saved = stored(folder)
        require_same(abstract, saved.metadata, folder)
        try:
            loaded = self._checkpointer.load_checkpointables(step, abstract)
        except (KeyError, ValueError, OSError) as error:
            raise TornCheckpoint(f"{folder} cannot be read: {_first_line(error)}") from error
        return _join(loaded, abstract_state), dict(saved.custom_metadata)

    def _move_aside(self, step: int, folder: Path) -> None:
        if jax.process_index() == 0:
            aside = join(self._workdir, TORN_FOLDER)
            make_folder(aside)
            names = (f"{step}.{earlier}" if earlier else str(step) for earlier in itertools.count())
            move_folder(folder, next(p for n in names if not exists(p := join(aside, n))))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"moved torn checkpoint {step}")
        self._checkpointer.reload()


def save_params(
    path: PathOrUrl,
    params: dict[str, Any],
    metadata: dict[str, Any],
    rest: dict[str, np.ndarray] | None = None,
) -> None:
    """Writes an encoder as a checkpoint without heads, optimiser and counters.

    Args:
      path: its folder, which must not exist; it appears whole.
      params: the encoder's parameter tree.
      metadata: JSON values; `metadata["config"]["model"]` is the encoder's configuration.
      rest: further arrays by path name, such as "params/text/pos_embedding"; config.init.parts
        takes parameters of them over.
    """
    trees: dict[str, Any] = {"encoder": params}
    if rest:
        trees["train"] = rest
    arrays = {name: len(jax.tree.leaves(tree)) for name, tree in trees.items()}
    ocp.save_checkpointables(
        checkpoint_path(path), trees, custom_metadata={**metadata, "arrays": arrays}
    )


def _every_process(value: int) -> list[int]:
    """What each process gives, in their order, to all of them."""
    if jax.process_count() == 1:
        return [value]
    return multihost_utils.process_allgather(np.array(value, np.int32)).tolist()


def _first_line(error: Exception) -> str:
    return str(error).strip().strip("\"'").split("\n")[0][:300]


def _split(state: dict[str, Any]) -> dict[str, Any]:
    """State -> checkpointables.

    Everything but the encoder goes by path name, so that no optax class is part of the format.
    """
    trees = {}
    if "encoder" in state["params"]:  # a probe trains heads alone
        trees["encoder"] = state["params"]["encoder"]
    if "ema" in state:
        trees["ema"] = state["ema"]
    leaves = jax.tree_util.tree_flatten_with_path(outside_encoder(state))[0]
    return {**trees, "train": {path_name(path): leaf for path, leaf in leaves}}


def _join(loaded: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    state = jax.tree_util.tree_map_with_path(
        lambda path, _: loaded["train"][path_name(path)], outside_encoder(like)
    )
    if "encoder" in like["params"]:
        state["params"]["encoder"] = loaded["encoder"]
    return {**state, "ema": loaded["ema"]} if "ema" in like else state
