"""A trainer's step, compiled once for all tests of a process that have the same configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax

from codecvit.trainers import mesh as meshes


class Program(NamedTuple):
    """init(seed) -> state; step(state, {source: rows}) -> (state, metrics); both on `mesh`."""

    mesh: jax.sharding.Mesh
    init: Callable
    step: Callable

    def put(self, batch: dict[str, dict]) -> dict[str, dict]:
        """Rows of every source on the mesh."""
        return {name: meshes.put_batch(rows, self.mesh) for name, rows in batch.items()}


_PROGRAMS: dict[tuple, Program] = {}


def program(trainer: ModuleType, config: Any, devices: int = 1) -> Program:
    """The program of `pretrain_step` or `contrastive_step` on so many devices."""
    # Sources in their order: a test asks whether it matters.
    key = (trainer.__name__, json.dumps(config.to_dict()), devices)
    if key not in _PROGRAMS:
        mesh = meshes.make_mesh(config.mesh, jax.devices()[:devices])
        with jax.set_mesh(mesh):
            shapes = jax.eval_shape(lambda: trainer.init_state(config, jax.random.key(0)))
            shardings = meshes.shard_tree(shapes, mesh, config.mesh)
        init = jax.jit(
            lambda seed: trainer.init_state(config, jax.random.key(seed)), out_shardings=shardings
        )
        step = jax.jit(trainer.make_train_step(config), out_shardings=(shardings, None))
        _PROGRAMS[key] = Program(mesh, init, step)
    return _PROGRAMS[key]


def take_steps(
    trainer: ModuleType, config: Any, batches: list[dict[str, dict]], devices: int = 1
) -> tuple[Any, Any, list[dict]]:
    """The states before and after the last of some steps, and the metrics of each."""
    made = program(trainer, config, devices)
    with jax.set_mesh(made.mesh):
        state = made.init(config.seed)
        history = []
        for batch in batches:
            before = state
            state, metrics = made.step(state, made.put(batch))
            history.append(jax.device_get(metrics))
        return jax.device_get(before), jax.device_get(state), history
