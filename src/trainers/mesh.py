"""The device mesh and where each array lies on it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .run_config import MeshConfig

AXES = ("data", "fsdp", "tensor")
HEARTBEAT_SECONDS = 60
BATCH_SPEC = PartitionSpec(("data", "fsdp"))


def start_processes() -> None:
    """Joins the other processes of a multi-host run; does nothing in a run of one process.

    A coordinator address, Slurm with several tasks, or a TPU pod says that there are several. On
    Slurm and pods jax finds the rest out itself; elsewhere JAX_COORDINATOR_ADDRESS (host:port of
    process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID tell. Must be called before any other use of
    jax.

    Raises:
      ValueError: one of these variables is no number.
    """
    several = (
        "JAX_COORDINATOR_ADDRESS" in os.environ
        or int(os.environ.get("SLURM_NTASKS", "1")) > 1
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    )
    if several:
        jax.distributed.initialize(
            num_processes=_number("JAX_NUM_PROCESSES"),
            process_id=_number("JAX_PROCESS_ID"),
            # A lost process is noticed within this time, and then the others end.
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes data, fsdp and tensor over all devices.

    Args:
      config: axis sizes; one may be -1.
      devices: the devices to use, all by default.

    Raises:
      ValueError: the sizes don't multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(
            f"config.mesh = {dict(zip(AXES, sizes, strict=True))}: "
            "one size may be -1, the others >= 1"
        )
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // -int(np.prod(sizes)))
    if np.prod(sizes) != len(devices):
        raise ValueError(
            f"config.mesh asks for {' x '.join(map(str, sizes))} = {np.prod(sizes)} devices "
            f"({', '.join(AXES)}), but {len(devices)} are there"
        )
    # Auto: linen and the partitioner place intermediates; make_mesh itself now defaults to
    # Explicit.
    return jax.make_mesh(
        tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def shard_tree(tree: Any, mesh: Mesh, config: MeshConfig) -> Any:
    """The sharding of every leaf by the rules of the config.

    Args:
      tree: pytree of arrays or ShapeDtypeStructs: parameters, optimiser state, the whole training
        state.
      mesh: the mesh.
      config: its `rules`; a leaf that no rule matches is replicated, and so is a dimension that its
        axes don't divide.

    Returns:
      The same tree of NamedShardings.
    """
    rules = [(re.compile(regex), spec) for regex, spec in config.rules]

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        for regex, spec in rules:
            if leaf.ndim and regex.search(name):
                return NamedSharding(mesh, _fit(spec, leaf.shape, mesh, name))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, tree)


def abstract(shapes: Any, shardings: Any) -> Any:
    """Shapes and where they lie, as one tree of ShapeDtypeStructs."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )


def path_name(path: tuple[Any, ...]) -> str:
    """'params/encoder/blocks/attn/qkv/kernel' for a jax key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A process' part of a batch -> global arrays with rows over the data and fsdp axes."""
    sharding = NamedSharding(mesh, BATCH_SPEC)
    return {
        key: jax.make_array_from_process_local_data(sharding, rows) for key, rows in batch.items()
    }


def put_whole_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The same of a batch whose rows every process has: each hands in its part of them."""
    index, count = batch_part(mesh)
    return put_batch({key: np.array_split(r, count)[index] for key, r in batch.items()}, mesh)


def batch_part(mesh: Mesh) -> tuple[int, int]:
    """Which part of a batch this process reads, and how many parts there are.

    There are as many as processes, unless the tensor axis spans several: their devices hold the
    same rows, so they read the same part.

    Raises:
      ValueError: the rows of two processes overlap in part.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    rows_of: dict[int, set[int]] = {}
    for device, (rows,) in NamedSharding(mesh, BATCH_SPEC).devices_indices_map((ways,)).items():
        rows_of.setdefault(device.process_index, set()).add(rows.start or 0)
    return part_of(jax.process_index(), rows_of)


def part_of(process: int, rows_of: Mapping[int, set[int]]) -> tuple[int, int]:
    """`batch_part` of a process, from the rows that the devices of each process hold."""
    parts = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
    rows = [row for part in parts for row in part]
    if len(rows) > len(set(rows)) or len({len(part) for part in parts}) > 1:
        raise ValueError(
            "config.mesh spreads a batch so that processes share some of their rows and not "
            "others: choose a tensor size that divides the devices of a process, or a multiple"
        )
    return parts.index(tuple(sorted(rows_of[process]))), len(parts)


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is not None and not text.isdecimal():
        raise ValueError(f"{variable} = {text!r} in the environment must be a number")
    return None if text is None else int(text)


def _fit(spec: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, name: str) -> PartitionSpec:
    if len(spec) != len(shape):
        raise ValueError(
            f"config.mesh.rules: {spec} has {len(spec)} entries, but {name} has shape {shape}"
        )
    entries = []
    for axes, size in zip(spec, shape, strict=True):
        names = tuple(axis for axis in axes.split(",") if axis)
        for axis in names:
            if axis not in AXES:
                raise ValueError(
                    f"config.mesh.rules names axis {axis!r}; the axes are {', '.join(AXES)}"
                )
        ways = int(np.prod([mesh.shape[axis] for axis in names]))
        entries.append(names if names and size % ways == 0 else None)
    return PartitionSpec(*entries)
