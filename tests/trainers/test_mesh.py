"""Mesh sizes and sharding rules."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from codecvit.trainers.mesh import batch_part, make_mesh, part_of, put_batch, shard_tree
from codecvit.trainers.run_config import MeshConfig


def array(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


def test_one_size_takes_the_devices_that_are_left():
    assert make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2)).shape == {
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
    }
    assert make_mesh(MeshConfig(), jax.devices()[:3]).shape == {"data": 3, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": -1, "fsdp": 3}, {"data": 16}])
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes):
    with pytest.raises(ValueError, match="but 8 are there"):
        make_mesh(MeshConfig(**sizes))
    with pytest.raises(ValueError, match="one size may be -1"):
        make_mesh(MeshConfig(data=-1, fsdp=-1))


def test_rules_shard_parameters_and_their_moments_alike():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    tree = {
        "encoder": {
            "blocks": {"attn": {"qkv": {"kernel": array(4, 64, 192), "bias": array(4, 192)}}}
        },
        "opt_state": {"mu": {"heads": {"main": {"centres": array(64, 32)}}}},
        "step": array(),
    }
    spec = jax.tree.map(lambda s: s.spec, shard_tree(tree, mesh, MeshConfig()))
    qkv = spec["encoder"]["blocks"]["attn"]["qkv"]
    assert qkv["kernel"] == PartitionSpec(None, ("fsdp",), ("tensor",))
    assert qkv["bias"] == PartitionSpec(None, ("tensor",))
    centres = spec["opt_state"]["mu"]["heads"]["main"]["centres"]
    assert centres == PartitionSpec(("data", "fsdp", "tensor"), None)
    assert spec["step"] == PartitionSpec()


def test_a_dimension_that_does_not_divide_is_replicated():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    spec = shard_tree({"patch_embed": {"kernel": array(588, 64)}}, mesh, MeshConfig())
    assert spec["patch_embed"]["kernel"].spec == PartitionSpec(None, ("tensor",))


def test_a_rule_of_the_wrong_rank_names_itself():
    config = MeshConfig(rules=((r"kernel", ("fsdp",)),))
    with pytest.raises(ValueError, match=r"has 1 entries, but kernel has shape \(4, 4\)"):
        shard_tree({"kernel": array(4, 4)}, make_mesh(config), config)
    config = MeshConfig(rules=((r"kernel", ("rows", "")),))
    with pytest.raises(ValueError, match="names axis 'rows'"):
        shard_tree({"kernel": array(4, 4)}, make_mesh(config), config)


def test_batches_are_spread_by_rows():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    rows = np.arange(16, dtype=np.int32).reshape(8, 2)
    put = put_batch({"x": rows}, mesh)["x"]
    np.testing.assert_array_equal(put, rows)
    assert {shard.data.shape for shard in put.addressable_shards} == {(1, 2)}


def test_processes_that_hold_the_same_rows_read_the_same_part():
    """Row blocks by process: of 4 hosts, of a tensor axis over 2 of them, over all of them."""
    own = {0: {0, 1}, 1: {2, 3}, 2: {4, 5}, 3: {6, 7}}
    assert [part_of(process, own) for process in own] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    shared = {0: {0}, 1: {0}, 2: {1}, 3: {1}}
    assert [part_of(process, shared) for process in shared] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    # Devices are not always in the order of processes.
    mixed = {0: {1, 3}, 1: {0, 2}, 2: {1, 3}}
    assert [part_of(process, mixed) for process in mixed] == [(1, 2), (0, 2), (1, 2)]
    for overlapping in ({0: {0, 1}, 1: {1, 2}}, {0: {0, 1}, 1: {2}}):
        with pytest.raises(ValueError, match="choose a tensor size"):
            part_of(0, overlapping)


@pytest.mark.parametrize("tensor", [1, 8])
def test_one_process_reads_all(tensor):
    assert batch_part(make_mesh(MeshConfig(tensor=tensor))) == (0, 1)
