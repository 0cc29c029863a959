"""What a pretraining run would take: parameters, shardings, memory and FLOPs, without data."""

from __future__ import annotations

import io
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from rich.console import Console
from rich.table import Table

from . import mesh as meshes
from .pretrain_config import PretrainConfig, buckets
from .pretrain_sources import step_work
from .pretrain_step import init_state, make_train_step

_MIB = 2**20


def dry_run(config: PretrainConfig) -> str:
    """A report on one run, as text.

    The step is compiled for the mesh, but nothing is computed. Sizes of arrays are exact;
    the step's temporary memory is what the compiler of the present platform asks for: on a CPU,
    whose attention keeps all probabilities, more than an accelerator takes.

    Args:
      config: the run; its mesh must fit the devices that jax shows.

    Raises:
      ValueError: the mesh, a batch or a sharding rule doesn't fit.
    """
    mesh = meshes.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda k: init_state(config, k), jax.random.key(config.seed))
        shardings = meshes.shard_tree(shapes, mesh, config.mesh)
        step = jax.jit(make_train_step(config), donate_argnums=0, out_shardings=(shardings, None))
        batches = _batches(config, mesh)
        compiled = step.lower(meshes.abstract(shapes, shardings), batches).compile()
    console = Console(width=120, record=True, file=io.StringIO())
    sizes = " x ".join(f"{mesh.shape[axis]} {axis}" for axis in meshes.AXES)
    console.print(f"mesh: {mesh.size} devices = {sizes}")
    console.print(_parameters(shapes["params"], shardings["params"]))
    memory = compiled.memory_analysis()
    parts = {
        "parameters": ("params",),
        "optimiser": ("opt_state",),
        "moving average": ("ema",),
        "counters": ("hits", "loss_spikes"),
    }
    for name, keys in parts.items():
        if not any(key in shapes for key in keys):
            continue
        total = sum(
            _local_bytes(leaf, place)
            for key in keys
            if key in shapes
            for leaf, place in zip(
                jax.tree.leaves(shapes[key]), jax.tree.leaves(shardings[key]), strict=True
            )
        )
        console.print(f"{name}: {total / _MIB:,.1f} MiB on each device")
    console.print(
        f"step: {memory.argument_size_in_bytes / _MIB:,.1f} MiB of arguments and "
        f"{memory.temp_size_in_bytes / _MIB:,.1f} MiB of temporaries on each device "
        f"({jax.default_backend()} compiler)"
    )
    work = step_work(config, step=1)
    tflop = work["flops"] / 1e12
    console.print(
        f"work: {work['samples']:,} samples, {work['tokens']:,} tokens, "
        f"{tflop:,.2f} TFLOP a step ({tflop / mesh.size:,.2f} on each device); "
        f"{tflop * config.total_steps / 1e6:,.3g} EFLOP in {config.total_steps:,} steps of the "
        "first buckets"
    )
    return console.export_text()


def _batches(config: PretrainConfig, mesh: Mesh) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes of the first bucket of every source."""
    rows = NamedSharding(mesh, meshes.BATCH_SPEC)
    made = {}
    for name, source in config.sources.items():
        B, L = buckets(source)[""].batch_size, source.budget
        fields = {
            "patches": ((B, L, config.model.patch**2 * 3), jnp.uint8),
            "positions": ((B, L, 3), jnp.int32),
            "length": ((B,), jnp.int32),
            "labels": ((B, source.labels_drawn), jnp.int32),
            "weight": ((B,), jnp.float32),
        }
        made[name] = {
            key: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
            for key, (shape, dtype) in fields.items()
        }
    return made


def _parameters(shapes: Any, shardings: Any) -> Table:
    table = Table("parameter", "shape", "over", "MiB on each device", box=None)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    total = 0
    for (path, leaf), place in zip(leaves, jax.tree.leaves(shardings), strict=True):
        over = [axes if isinstance(axes, str) else ",".join(axes or "-") for axes in place.spec]
        total += leaf.size
        table.add_row(
            meshes.path_name(path),
            " x ".join(f"{size:,}" for size in leaf.shape),
            " x ".join(over) if any(place.spec) else "every device",
            f"{_local_bytes(leaf, place) / _MIB:,.3f}",
        )
    table.add_row("all", f"{total:,} parameters", "", "")
    return table


def _local_bytes(leaf: Any, place: NamedSharding) -> int:
    return math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
