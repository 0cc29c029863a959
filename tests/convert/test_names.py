"""The table of names is a bijection, strict both ways, and is the published one."""

import jax
import numpy as np
import pytest

from codecvit.convert.names import from_hf, published_shapes, to_hf
from codecvit.models import ViT, ViTConfig

LARGE = ViTConfig.from_variant("L/14")


def test_large_has_the_published_tensors():
    shapes = published_shapes(LARGE)
    assert len(shapes) == 399
    assert sum(np.prod(shape) for shape in shapes.values()) == 315_509_760
    assert shapes["embeddings.patch_embedding.weight"] == (1024, 3, 14, 14)
    assert shapes["encoder.layers.23.self_attn.k_proj.weight"] == (1024, 1024)
    assert shapes["encoder.layers.0.mlp.fc1.weight"] == (4096, 1024)
    assert shapes["encoder.layers.7.mlp.fc2.weight"] == (1024, 4096)
    assert shapes["head.attention.in_proj_weight"] == (3072, 1024)
    assert shapes["head.probe"] == (1, 1, 1024)
    assert "head.norm.bias" not in shapes


@pytest.mark.parametrize(
    ("variant", "params"), [("B/14", 92_595_456), ("L/14", 315_509_760), ("H/14", 650_110_720)]
)
def test_sizes_count_the_published_parameters(variant, params):
    config = ViTConfig.from_variant(variant)
    shapes = published_shapes(config)
    assert len(shapes) == 16 * config.depth + 15
    assert sum(np.prod(shape) for shape in shapes.values()) == params


def test_takes_the_tree_that_the_model_makes():
    config = ViTConfig(width=64, depth=3, num_heads=1, mlp_dim=128, patch=16)
    patches = jax.ShapeDtypeStruct((1, 2, 16 * 16 * 3), np.uint8)
    positions = jax.ShapeDtypeStruct((1, 2, 3), np.int32)
    shapes = jax.eval_shape(ViT(config).init, jax.random.key(0), patches, positions)["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    tensors = to_hf(params, config)
    assert {name: t.shape for name, t in tensors.items()} == published_shapes(config)
    assert all(t.flags.c_contiguous for t in tensors.values())


def test_round_trip_is_bit_equal(small):
    config, params = small
    back = from_hf(to_hf(params, config), config)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_layout_of_each_kind(small):
    """Against the definition of the layouts, element by element."""
    config, params = small
    tensors = to_hf(params, config)
    kernel = params["patch_embed"]["kernel"]
    conv = tensors["embeddings.patch_embedding.weight"]
    d, channel, row, column = 5, 2, 3, 11
    assert conv[d, channel, row, column] == kernel[(row * 14 + column) * 3 + channel, d]
    qkv = params["blocks"]["attn"]["qkv"]
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        weight = tensors[f"encoder.layers.1.self_attn.{name}.weight"]
        assert weight[7, 9] == qkv["kernel"][1, 9, 64 * i + 7]
        assert tensors[f"encoder.layers.1.self_attn.{name}.bias"][7] == qkv["bias"][1, 64 * i + 7]
    in_proj = tensors["head.attention.in_proj_weight"]
    assert in_proj[64 + 3, 8] == params["head"]["attn"]["qkv"]["kernel"][8, 64 + 3]


def test_missing_extra_and_misshapen_tensors_are_named(small):
    config, params = small
    tensors = to_hf(params, config)
    name = "encoder.layers.1.mlp.fc2.bias"
    fewer = {key: value for key, value in tensors.items() if key != name}
    with pytest.raises(ValueError, match=rf"missing.*{name}"):
        from_hf(fewer, config)
    with pytest.raises(ValueError, match=r"unknown.*head\.norm\.bias"):
        from_hf(tensors | {"head.norm.bias": np.zeros(64, np.float32)}, config)
    turned = tensors | {"encoder.layers.0.mlp.fc1.weight": np.zeros((64, 96), np.float32)}
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.fc1\.weight.*\[64, 96\].*\[96, 64\]"):
        from_hf(turned, config)


def test_missing_extra_and_misshapen_parameters_are_named(small):
    config, params = small
    with pytest.raises(ValueError, match=r"missing.*head/probe"):
        to_hf({**params, "head": {**params["head"], "probe": {}}}, config)
    with pytest.raises(ValueError, match=r"unknown.*patch_embed/bias"):
        extra = {**params["patch_embed"], "bias": np.zeros(64, np.float32)}
        to_hf({**params, "patch_embed": extra}, config)
    with pytest.raises(ValueError, match=r"layernorm_pre/bias.*\[63\].*\[64\]"):
        short = {**params["layernorm_pre"], "bias": np.zeros(63, np.float32)}
        to_hf({**params, "layernorm_pre": short}, config)
    deeper = ViTConfig(width=64, depth=3, num_heads=2, mlp_dim=96)
    with pytest.raises(ValueError, match=r"blocks/.*\[2, .*\[3, "):
        to_hf(params, deeper)
