"""Reads a checkpoint, of whichever run or import: encoder, other parts, metadata.

What a checkpoint holds stands in checkpoints.py. Reading needs no mesh: arrays come as numpy, or as
the state lies that they are taken into.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from ..files import PathOrUrl, fresh_listings, is_url
from .mesh import path_name
from .run_config import InitConfig

FOLDER = "checkpoints"
_COMMITTED = "commit_success.txt"


class TornCheckpoint(ValueError):
    """A checkpoint that lacks a part of what it was written with, or whose bytes are damaged."""


def checkpoint_path(path: PathOrUrl) -> Path:
    """A folder with checkpoints, for Orbax: a local one as an absolute path, or one of a bucket.

    Raises:
      ValueError: Orbax can't store arrays there, or the package that reaches it is missing.
    """
    if not is_url(path):
        return Path(path).absolute()
    if not os.fspath(path).startswith("gs://"):
        raise ValueError(
            f"{os.fspath(path)}: checkpoints lie in a folder or in Google Cloud Storage (gs://)"
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"{os.fspath(path)}: gs:// needs the package gcsfs: pip install gcsfs")
    fresh_listings()
    return epath.Path(path)


def find_checkpoint(path: PathOrUrl) -> Path:
    """The folder of one checkpoint: `path` itself, or the newest of a work directory.

    Raises:
      ValueError: there is none; the message says what was looked for.
    """
    path = checkpoint_path(path)
    if _is_checkpoint(path):
        return path
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    steps = [p for p in steps if _is_checkpoint(p)]
    if not steps:
        raise ValueError(
            f"{path}: neither a checkpoint (encoder/) nor a work directory ({FOLDER}/STEP/)"
        )
    return max(steps, key=lambda p: int(p.name))


def restore_params(path: PathOrUrl, *, ema: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
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
    saved = stored(folder)
    tree = _encoder_tree(folder, saved.metadata, ema)
    abstract = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), saved.metadata[tree])
    return ocp.load_checkpointables(folder, {tree: abstract})[tree], dict(saved.custom_metadata)


def read_metadata(path: PathOrUrl) -> dict[str, Any]:
    """The JSON values that were saved with a checkpoint.

    Args:
      path: a work directory or one checkpoint of it.

    Raises:
      ValueError: there is no checkpoint, or it is torn.
    """
    return dict(stored(find_checkpoint(path)).custom_metadata)


def restore_rest(path: PathOrUrl, prefix: str) -> dict[str, np.ndarray]:
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
    train = stored(folder).metadata.get("train", {})  # an imported encoder has none
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


def head_centres(path: PathOrUrl, head: str) -> np.ndarray:
    """The class centres of a head, float32 [C, D], padding rows included.

    Raises:
      ValueError: there is no checkpoint, or no such head in it.
    """
    heads = restore_rest(path, f"params/heads/{head}/")
    if "centres" not in heads:
        folder = find_checkpoint(path)
        train = stored(folder).metadata.get("train", {})
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
    trained = stored(folder).custom_metadata["config"]["model"]
    trained = trained.get("vision", trained)  # of an image-text run
    for field in ("num_heads", "rope_theta", "layer_norm_eps"):
        there, here = trained.get(field), getattr(model, field, None)
        if there != here:
            raise ValueError(
                f"{folder} was trained with {field} = {there}, the encoder of this run has {field} "
                f"= {here}: set it to the same"
            )


def require_same_classes(config: InitConfig, heads: Mapping[str, Any]) -> None:
    """Compares the numbers of classes of the heads that are taken over, which padded shapes hide.

    Args:
      config: the checkpoint and what to take of it.
      heads: of the run that takes them over, by name, each with `num_classes`.

    Raises:
      ValueError: a head was trained for another number of classes.
    """
    folder = find_checkpoint(config.checkpoint)
    trained = stored(folder).custom_metadata["config"].get("heads", {})
    for name, head in heads.items():
        if f"heads/{name}" not in config.parts or name not in trained:
            continue
        there = trained[name]["num_classes"]
        if there != head.num_classes:
            raise ValueError(
                f"{folder}: the head {name!r} was trained for {there} classes, config.heads.{name}."
                f"num_classes = {head.num_classes}: other labels, so leave heads/{name} out of "
                "config.init.parts, or set it to the same"
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
    saved = stored(folder)
    tree = _encoder_tree(folder, saved.metadata, config.ema)
    prefixes = tuple(f"params/{part}/" for part in config.parts)

    def taken(key: str) -> bool:
        return f"{key}/".startswith(prefixes)  # a part may be a single array

    wanted = {tree: jax.tree.map(_abstract, state["params"]["encoder"])}
    have = {tree: saved.metadata[tree]}
    leaves = jax.tree_util.tree_flatten_with_path(outside_encoder({"params": state["params"]}))[0]
    parts = {key: _abstract(leaf) for path, leaf in leaves if taken(key := path_name(path))}
    for part, prefix in zip(config.parts, prefixes, strict=True):
        if not any(f"{key}/".startswith(prefix) for key in parts):
            raise ValueError(f"config.init.parts names {part!r}, which this run does not train")
    if parts:
        wanted["train"] = parts
        train = saved.metadata.get("train", {})  # an imported checkpoint has none
        have["train"] = {key: leaf for key, leaf in train.items() if taken(key)}
    require_same(wanted, have, folder)
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


def _is_checkpoint(folder: Path) -> bool:
    # A bucket can't rename: an unfinished checkpoint has its name already, and lacks this file.
    whole = not is_url(folder) or (folder / _COMMITTED).exists()
    return whole and (folder / "encoder").is_dir()


def _encoder_tree(folder: Path, trees: dict[str, Any], ema: bool) -> str:
    if ema and "ema" not in trees:
        raise ValueError(
            f"{folder} holds no moving average: its run had config.ema.enabled = False"
        )
    return "ema" if ema else "encoder"


def stored(folder: Path) -> Any:
    """What a checkpoint says that it holds.

    Args:
      folder: of one checkpoint.

    Returns:
      Orbax's metadata: `metadata`, the trees; `custom_metadata`, the JSON values.

    Raises:
      TornCheckpoint: that is not what it was written with.
    """
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


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def outside_encoder(state: dict[str, Any]) -> dict[str, Any]:
    """Everything of a state but the encoder and its average."""
    kept = {key: value for key, value in state.items() if key != "ema"}
    return {**kept, "params": {k: v for k, v in state["params"].items() if k != "encoder"}}


def require_same(wanted: dict[str, Any], saved: dict[str, Any], folder: Path) -> None:
    """Compares arrays by name and shape; raises ValueError, naming what differs, if any does."""

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
