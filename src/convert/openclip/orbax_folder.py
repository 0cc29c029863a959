"""Reads the JAX weights that OpenVision publishes: the folder `jax_orbax_weight` of its models.

It holds what Orbax's CheckpointManager wrote of a tree {params, opt}, by StandardSave: a step, an
item `default` below it. Only `params` is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ..names import flatten

_ITEM = "default"


def find_orbax(folder: Path) -> Path | None:
    """The newest step below a folder, or a tree that was saved alone; None where there is none.

    Args:
      folder: a model's folder, its `jax_orbax_weight`, the manager's folder or one step.
    """
    # A checkpoint of ours is Orbax's too, but its trees have other names.
    found = [file.parent for file in folder.glob("_METADATA")]
    for depth in range(1, 5):
        found += [file.parent for file in folder.glob("*/" * (depth - 1) + f"{_ITEM}/_METADATA")]
    steps = [path.parent if path.name == _ITEM else path for path in found]
    return max(steps, key=lambda p: int(p.name) if p.name.isdecimal() else -1, default=None)


def read_orbax(step: Path) -> dict[str, np.ndarray]:
    """The parameters of a step that `find_orbax` found, by path name.

    Raises:
      ValueError: it holds no tree `params`, or is damaged.
    """
    alone = not (step / _ITEM).is_dir()
    try:
        saved = ocp.metadata(step) if alone else ocp.checkpointables_metadata(step)
        tree: Any = saved.metadata if alone else saved.metadata[_ITEM]
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{step} is no Orbax checkpoint: {error}") from error
    if not isinstance(tree, dict) or "params" not in tree:
        raise ValueError(
            f"{step} holds no tree 'params': it is damaged, or not what OpenVision's trainer saved"
        )
    abstract = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree["params"])
    context = ocp.Context()
    context.pytree.loading.partial_load = True  # the optimiser is twice as large, and not wanted
    try:
        with context:
            if alone:
                loaded = ocp.load(step, {"params": abstract})
            else:
                loaded = ocp.load_checkpointables(step, {_ITEM: {"params": abstract}})[_ITEM]
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{step} cannot be read: {str(error)[:300]}") from error
    return flatten(loaded["params"])
