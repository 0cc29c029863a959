"""Checkpoints: Orbax v1, used nowhere else.

A checkpoint `checkpoints/STEP` holds the trees `encoder` (what `codecvit.load` and the export
read; a probe's has none), `ema` (its moving average, if there is one) and `train` (heads,
optimiser, counters), and JSON metadata: the resolved configuration, the position of every data
source, the version of this package. Saving is asynchronous and atomic; a failed save stops the run
at the next one.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from .mesh import path_name
from .run_config import CheckpointConfig, InitConfig

FOLDER = "checkpoints"
TORN_FOLDER = "torn"

_LOG = logging.getLogger(__name__)


class TornCheckpoint(ValueError):
    """A checkpoint that lacks a part of what it was written with, or whose bytes are damaged."""


class Checkpoints:
    """The checkpoints of one work directory.

    Args:
      workdir: the run's folder; checkpoints lie in `workdir/checkpoints/STEP`.
      config: which are kept.
    """

    def __init__(self, workdir: str | Path, config: CheckpointConfig) -> None:
        policies = ocp.training.preservation_policies
        kept: list[Any] = [policies.LatestN(config.keep)]
        if config.keep_every_steps:
            kept.append(policies.EveryNSteps(config.keep_every_steps))
        self._workdir = Path(workdir).absolute()
        self._checkpointer = ocp.training.Checkpointer(
            self._workdir / FOLDER,
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )
        self._pending: Any = None

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
          Exception: what went wrong in the earlier, asynchronous save.
        """
        self.wait()
        if self.latest_step == step:
            return
        trees = _split(state)
        # So that a torn checkpoint can be told from one of another configuration.
        arrays = {name: len(jax.tree.leaves(tree)) for name, tree in trees.items()}
        self._pending = self._checkpointer.save_checkpointables_async(
            step, trees, force=True, custom_metadata={**metadata, "arrays": arrays}
        )

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
            or there are checkpoints, and all of them are torn.
        """
        torn = []
        while (step := self.latest_step) is not None:
            folder = self._workdir / FOLDER / str(step)
            found, problem = None, ""
            try:
                found = self._load(step, folder, abstract_state)
            except TornCheckpoint as error:
                problem = str(error)
            # Each process reads its own part: what is torn for one is torn for all.
            if not _any_process(bool(problem)):
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
        """Blocks until the checkpoint under way is on disk; raises what went wrong with it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        self.wait()
        self._checkpointer.close()

    def _load(
        self, step: int, folder: Path, abstract_state: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        abstract = _split(abstract_state)
        saved = _read_metadata(folder)
        _require_same(abstract, saved.metadata, folder)
        try:
            loaded = self._checkpointer.load_checkpointables(step, abstract)
        except (KeyError, ValueError, OSError) as error:
            raise TornCheckpoint(f"{folder} cannot be read: {_first_line(error)}") from error
        return _join(loaded, abstract_state), dict(saved.custom_metadata)

    def _move_aside(self, step: int, folder: Path) -> None:
        if jax.process_index() == 0:
            aside = self._workdir / TORN_FOLDER
            aside.mkdir(exist_ok=True)
            earlier = len(list(aside.glob(f"{step}*")))
            folder.rename(aside / (f"{step}.{earlier}" if earlier else str(step)))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"moved torn checkpoint {step}")
        self._checkpointer.reload()


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


def restore_params(path: str | Path, *, ema: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """The encoder of a checkpoint, without heads and optimiser.

    Args:
      path: a work directory or one checkpoint of it.
      ema: the moving average of the parameters instead of them.

    Returns:
      The parameter tree as numpy arrays, and the checkpoint's metadata (`metadata["config"]` is the
      resolved configuration).

    Raises:
      ValueError: there is no checkpoint, it is torn, or it has no moving average.
    """
    folder = find_checkpoint(path)
    saved = _read_metadata(folder)
    tree = _encoder_tree(folder, saved.metadata, ema)
    abstract = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), saved.metadata[tree])
    return ocp.load_checkpointables(folder, {tree: abstract})[tree], dict(saved.custom_metadata)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The JSON values that were saved with a checkpoint.

    Args:
      path: a work directory or one checkpoint of it.

    Raises:
      ValueError: there is no checkpoint, or it is torn.
    """
    return dict(_read_metadata(find_checkpoint(path)).custom_metadata)


def restore_rest(path: str | Path, prefix: str) -> dict[str, np.ndarray]:
    """Arrays of a checkpoint outside of the encoder, without reading the others.

    Args:
      path: a work directory or one checkpoint of it.
      prefix: of their path names, such as "params/text/".

    Returns:
      The arrays by path name without the prefix; empty where there is none.

    Raises:
      ValueError: there is no checkpoint, or it is torn.
    """
    folder = find_checkpoint(path)
    train = _read_metadata(folder).metadata.get("train", {})  # an imported encoder has none
    wanted = {
        key: np.zeros(leaf.shape, leaf.dtype)
        for key, leaf in train.items()
        if key.startswith(prefix)
    }
    if not wanted:
        return {}
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded = ocp.load_checkpointables(folder, {"train": wanted})["train"]
    return {key.removeprefix(prefix): np.asarray(leaf) for key, leaf in loaded.items()}


def save_params(
    path: str | Path,
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
        Path(path).absolute(), trees, custom_metadata={**metadata, "arrays": arrays}
    )


def head_centres(path: str | Path, head: str) -> np.ndarray:
    """The class centres of a head, float32 [C, D], padding rows included.

    Raises:
      ValueError: there is no checkpoint, or no such head in it.
    """
    heads = restore_rest(path, f"params/heads/{head}/")
    if "centres" not in heads:
        folder = find_checkpoint(path)
        train = _read_metadata(folder).metadata.get("train", {})
        names = [name.split("/") for name in train]
        known = sorted({name[2] for name in names if name[:2] == ["params", "heads"]})
        raise ValueError(f"{folder} has no head {head!r}; it has {', '.join(known) or 'none'}")
    return heads["centres"]


def require_same_encoder(checkpoint: str, model: Any) -> None:
    """Compares what the shapes of the parameters don't show.

    Args:
      checkpoint: a work directory or one checkpoint of it.
      model: the encoder's configuration in the run that is about to take the parameters over.

    Raises:
      ValueError: they were trained with other heads, frequencies or epsilon.
    """
    folder = find_checkpoint(checkpoint)
    trained = _read_metadata(folder).custom_metadata["config"]["model"]
    trained = trained.get("vision", trained)  # of an image-text run
    for field in ("num_heads", "rope_theta", "layer_norm_eps"):
        there, here = trained.get(field), getattr(model, field, None)
        if there != here:
            raise ValueError(
                f"{folder} was trained with {field} = {there}, the encoder of this run has {field} "
                f"= {here}: set it to the same"
            )


def initialise(config: InitConfig, state: dict[str, Any]) -> dict[str, Any]:
    """A fresh training state with the encoder, and the parts that are asked for, of a checkpoint.

    Args:
      config: the checkpoint and what to take of it.
      state: the fresh state; what is taken lies on the devices as its counterpart does.

    Returns:
      The state with those parameters; its moving average starts at them.

    Raises:
      ValueError: an array is missing, left over or of another shape; the message names it.
    """
    folder = find_checkpoint(config.checkpoint)
    saved = _read_metadata(folder)
    tree = _encoder_tree(folder, saved.metadata, config.ema)
    prefixes = tuple(f"params/{part}/" for part in config.parts)

    def taken(key: str) -> bool:
        return f"{key}/".startswith(prefixes)  # a part may be a single array

    wanted = {tree: jax.tree.map(_abstract, state["params"]["encoder"])}
    have = {tree: saved.metadata[tree]}
    leaves = jax.tree_util.tree_flatten_with_path(_rest({"params": state["params"]}))[0]
    parts = {key: _abstract(leaf) for path, leaf in leaves if taken(key := path_name(path))}
    for part, prefix in zip(config.parts, prefixes, strict=True):
        if not any(f"{key}/".startswith(prefix) for key in parts):
            raise ValueError(f"config.init.parts names {part!r}, which this run does not train")
    if parts:
        wanted["train"] = parts
        train = saved.metadata.get("train", {})  # an imported checkpoint has none
        have["train"] = {key: leaf for key, leaf in train.items() if taken(key)}
    _require_same(wanted, have, folder)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded = ocp.load_checkpointables(folder, wanted)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: loaded.get("train", {}).get(f"params/{path_name(path)}", leaf),
        {**state["params"], "encoder": {}},
    )
    made = {**state, "params": {**params, "encoder": loaded[tree]}}
    if "ema" in state:
        made["ema"] = jax.tree.map(lambda leaf: leaf.copy(), loaded[tree])
    return made


def _encoder_tree(folder: Path, trees: dict[str, Any], ema: bool) -> str:
    if ema and "ema" not in trees:
        raise ValueError(
            f"{folder} holds no moving average: its run had config.ema.enabled = False"
        )
    return "ema" if ema else "encoder"


def _read_metadata(folder: Path) -> Any:
    """What a checkpoint says that it holds, as far as that agrees with what it was written with."""
    saved = ocp.checkpointables_metadata(folder)
    written = (saved.custom_metadata or {}).get("arrays")
    if written is None:
        raise TornCheckpoint(
            f"{folder} lacks its metadata, or was written before there was such metadata"
        )
    for name, count in written.items():
        there = len(jax.tree.leaves(saved.metadata.get(name)))
        if there != count:
            raise TornCheckpoint(
                f"{folder / name} was written with {count} arrays, {there} are left"
            )
    return saved


def _any_process(flag: bool) -> bool:
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def _first_line(error: Exception) -> str:
    return str(error).strip().strip("\"'").split("\n")[0][:300]


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _split(state: dict[str, Any]) -> dict[str, Any]:
    """State -> checkpointables.

    Everything but the encoder goes by path name, so that no optax class is part of the format.
    """
    trees = {}
    if "encoder" in state["params"]:  # a probe trains heads alone
        trees["encoder"] = state["params"]["encoder"]
    if "ema" in state:
        trees["ema"] = state["ema"]
    leaves = jax.tree_util.tree_flatten_with_path(_rest(state))[0]
    return {**trees, "train": {path_name(path): leaf for path, leaf in leaves}}


def _join(loaded: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    state = jax.tree_util.tree_map_with_path(
        lambda path, _: loaded["train"][path_name(path)], _rest(like)
    )
    if "encoder" in like["params"]:
        state["params"]["encoder"] = loaded["encoder"]
    return {**state, "ema": loaded["ema"]} if "ema" in like else state


def _rest(state: dict[str, Any]) -> dict[str, Any]:
    """Everything of a state but the encoder and its average."""
    kept = {key: value for key, value in state.items() if key != "ema"}
    return {**kept, "params": {k: v for k, v in state["params"].items() if k != "encoder"}}


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
