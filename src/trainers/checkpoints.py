"""Checkpoints: Orbax v1, used nowhere else.

A checkpoint `checkpoints/STEP` holds two trees, `encoder` (what `codecvit.load` and the export
read) and `train` (heads, optimiser, counters), and JSON metadata: the resolved configuration, the
position of every data source, the version of this package. Saving is asynchronous and atomic; a
failed save stops the run at the next one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from .mesh import path_name

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one work directory.

    Args:
      workdir: the run's folder; checkpoints lie in `workdir/checkpoints/STEP`.
      keep: the newest so many are kept.
    """

    def __init__(self, workdir: str | Path, keep: int) -> None:
        self._checkpointer = ocp.training.Checkpointer(
            Path(workdir).absolute() / FOLDER,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )
        self._pending: Any = None

    @property
    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint, None where there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Starts writing a checkpoint; waits for an earlier one that is still under way.

        Args:
          step: the number of steps that the state has seen.
          state: the training state of docs/architecture.md.
          metadata: JSON values stored beside it.

        Raises:
          Exception: what went wrong in the earlier, asynchronous save.
        """
        self.wait()
        if self.latest_step == step:
            return
        self._pending = self._checkpointer.save_checkpointables_async(
            step, _split(state), force=True, custom_metadata=metadata
        )

    def restore(self, abstract_state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The newest checkpoint, laid out as the abstract state says, whatever mesh wrote it.

        Args:
          abstract_state: the training state as ShapeDtypeStructs with the shardings of the current
            mesh.

        Returns:
          The state and the metadata that was saved with it.

        Raises:
          ValueError: the checkpoint does not hold this state; the message names what differs.
        """
        step = self.latest_step
        folder = Path(self._checkpointer.directory) / str(step)
        abstract = _split(abstract_state)
        saved = ocp.checkpointables_metadata(folder)
        _require_same(abstract, saved.metadata, folder)
        loaded = self._checkpointer.load_checkpointables(step, abstract)
        return _join(loaded, abstract_state), dict(saved.custom_metadata)

    def wait(self) -> None:
        """Blocks until the checkpoint under way is on disk; raises what went wrong with it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        self.wait()
        self._checkpointer.close()


def find_checkpoint(path: str | Path) -> Path:
    """The folder of one checkpoint: `path` itself, or the newest of a work directory.

    Raises:
      ValueError: there is none; the message says what was looked for.
    """
    path = Path(path).absolute()
    if (path / "encoder").is_dir():
        return path
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    steps = [p for p in steps if (p / "encoder").is_dir()]
    if not steps:
        raise ValueError(
            f"{path}: neither a checkpoint (encoder/) nor a work directory ({FOLDER}/STEP/)"
        )
    return max(steps, key=lambda p: int(p.name))


def restore_params(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The encoder of a checkpoint, without heads and optimiser.

    Args:
      path: a work directory or one checkpoint of it.

    Returns:
      The parameter tree as numpy arrays, and the checkpoint's metadata (`metadata["config"]` is the
      resolved configuration).
    """
    folder = find_checkpoint(path)
    saved = ocp.checkpointables_metadata(folder)
    abstract = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), saved.metadata["encoder"]
    )
    return ocp.load_checkpointables(folder, {"encoder": abstract})["encoder"], dict(
        saved.custom_metadata
    )


def _split(state: dict[str, Any]) -> dict[str, Any]:
    """State -> checkpointables.

    Everything but the encoder goes by path name, so that no optax class is part of the format.
    """
    rest = {**state, "params": {"heads": state["params"]["heads"]}}
    leaves = jax.tree_util.tree_flatten_with_path(rest)[0]
    return {
        "encoder": state["params"]["encoder"],
        "train": {path_name(path): leaf for path, leaf in leaves},
    }


def _join(loaded: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    rest = {**like, "params": {"heads": like["params"]["heads"]}}
    rest = jax.tree_util.tree_map_with_path(lambda path, _: loaded["train"][path_name(path)], rest)
    return {**rest, "params": {"encoder": loaded["encoder"], "heads": rest["params"]["heads"]}}


def _require_same(wanted: dict[str, Any], saved: dict[str, Any], folder: Path) -> None:
    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        return {
            path_name(path): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }

    want, have = shapes(wanted), shapes(saved)
    wrong = [
        f"{name}: the run needs {want.get(name, 'nothing')}, "
        f"the checkpoint has {have.get(name, 'nothing')}"
        for name in sorted(want.keys() | have.keys())
        if want.get(name) != have.get(name)
    ]
    if wrong:
        more = f" (+{len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ValueError(
            f"{folder} was written by another configuration; {'; '.join(wrong[:3])}{more}. "
            "Use the configuration of its config.json, or another --workdir"
        )
