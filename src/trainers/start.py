"""The state that a run starts from, laid out over the mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from . import mesh as meshes
from .checkpoint_reading import initialise, require_same_classes, require_same_encoder
from .checkpoints import Checkpoints
from .run_config import RunConfig
from .update import State


def start_state(
    config: RunConfig,
    mesh: Mesh,
    checkpoints: Checkpoints,
    fresh: Callable[[jax.Array], State],
    encoder: Any,
) -> tuple[State, Any, dict[str, Any] | None]:
    """This work directory's checkpoint, else one that starts from config.init's, else random.

    Args:
      config: the run.
      mesh: the mesh, which is set.
      checkpoints: of the work directory.
      fresh: key -> the state of step 0; pure.
      encoder: the encoder's configuration, which that of config.init's checkpoint must agree with.

    Returns:
      The state, its shardings, and of a run that goes on the position of its data, else None.

    Raises:
      ValueError: the checkpoint doesn't fit.
    """
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(fresh, key)
    shardings = meshes.shard_tree(shapes, mesh, config.mesh)
    state, metadata = checkpoints.restore(meshes.abstract(shapes, shardings))
    if state is not None:
        return state, shardings, metadata["data"]
    state = jax.jit(fresh, out_shardings=shardings)(key)
    if config.init.checkpoint:
        require_same_encoder(config.init.checkpoint, encoder)
        require_same_classes(config.init, getattr(config, "heads", {}))
        state = initialise(config.init, state)
    return state, shardings, None


def count_parameters(params: Any) -> int:
    """Number of values of a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
