"""The state that a run starts from, laid out over the mesh."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from ..config_values import flatten
from . import mesh as meshes
from .checkpoint_reading import initialise, require_same_classes, require_same_encoder
from .checkpoints import Checkpoints
from .run_config import RunConfig
from .update import State

# Fields of a model that change how it is computed, and not what its parameters mean.
EXECUTION = ("dtype", "remat", "scan", "attention_impl")
_SHOWN = 10
_LOG = logging.getLogger(__name__)


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
      ValueError: the checkpoint doesn't fit, or was written by another model.
    """
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(fresh, key)
    shardings = meshes.shard_tree(shapes, mesh, config.mesh)
    state, metadata = checkpoints.restore(meshes.abstract(shapes, shardings))
    if state is not None:
        compare_with_saved(metadata["config"], config.to_dict(), int(state["step"]))
        return state, shardings, metadata["data"]
    state = jax.jit(fresh, out_shardings=shardings)(key)
    if config.init.checkpoint:
        require_same_encoder(config.init.checkpoint, encoder)
        require_same_classes(config.init, getattr(config, "heads", {}))
        state = initialise(config.init, state)
    return state, shardings, None


def compare_with_saved(saved: Mapping[str, Any], now: Mapping[str, Any], step: int) -> None:
    """Warns of every field of the configuration that a run goes on with another value of.

    Args:
      saved: the resolved configuration in the checkpoint.
      now: that of this start.
      step: the checkpoint's.

    Raises:
      ValueError: the model is another one, although its parameters have the same shapes.
    """
    then, here = flatten(saved, "config"), flatten(now, "config")
    changed = {
        name: f"{name}: {then.get(name, 'nothing')} then, {here.get(name, 'nothing')} now"
        for name in sorted(then.keys() | here.keys())
        if then.get(name) != here.get(name)
    }
    model = [
        told
        for name, told in changed.items()
        if name.startswith("config.model.")
        and name.rsplit(".", 1)[-1] not in EXECUTION
        # What only one of them has came or went with a version of this package.
        and name in then.keys() & here.keys()
    ]
    if model:
        raise ValueError(
            f"the checkpoint of step {step} was written by another model: {'; '.join(model)}. Use "
            "the configuration of its config.json, or another --workdir"
        )
    if changed:
        told = "; ".join(list(changed.values())[:_SHOWN])
        more = f" (+{len(changed) - _SHOWN} more)" if len(changed) > _SHOWN else ""
        _LOG.warning("goes on from step %d with another configuration: %s%s", step, told, more)


def count_parameters(params: Any) -> int:
    """Number of values of a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
