"""The table is a bijection between three sets of names, and strict in every direction."""

import jax
import numpy as np
import pytest

from codecvit.convert.openclip.names import (
    decoder_tensors,
    from_jax,
    from_openclip,
    openclip_shapes,
    position_code,
    to_openclip,
)
from codecvit.convert.openclip.settings import Parts
from codecvit.models.openvision import OpenVisionConfig, sincos_2d
from codecvit.models.text import TextConfig

from .helpers import in_their_jax, same_trees


@pytest.mark.parametrize("decoder", [None, "queries", "causal"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_round_trip_changes_nothing(make_parts, make_weights, decoder, bias):
    parts = make_parts(decoder=decoder, bias=bias)
    params = make_weights(parts)
    tensors, captions = to_openclip(params, parts), decoder_tensors(params, parts)
    assert {name: t.shape for name, t in tensors.items()} == openclip_shapes(parts)
    assert bool(captions) == (decoder is not None)
    assert sum(t.size for t in (*tensors.values(), *captions.values())) == sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )
    same_trees(from_openclip(tensors, captions, parts), params)


def test_the_published_count_of_l14():
    parts = Parts(OpenVisionConfig.from_variant("L/14"), TextConfig.from_variant("L"))
    shapes = openclip_shapes(parts)
    assert shapes["visual.conv1.weight"] == (1024, 3, 14, 14)
    assert shapes["visual.transformer.resblocks.23.attn.in_proj_weight"] == (3072, 1024)
    assert shapes["transformer.resblocks.11.mlp.c_fc.weight"] == (3072, 768)
    assert shapes["visual.proj"] == (1024, 768)
    assert shapes["text_projection"] == (768, 768)
    assert shapes["logit_scale"] == ()
    assert len(shapes) == 12 * (24 + 12) + 11
    count = {"visual": 0, "text": 0}
    for name, shape in shapes.items():
        count["visual" if name.startswith("visual.") else "text"] += int(np.prod(shape))
    assert round(count["visual"] / 1e6, 1) == 303.7  # as the published file
    assert round(count["text"] / 1e6, 1) == 110.3


def test_the_patch_kernel_is_the_convolution(make_parts, make_weights):
    parts = make_parts()
    params = make_weights(parts)
    weight = to_openclip(params, parts)["visual.conv1.weight"]
    kernel = params["encoder"]["patch_embed"]["kernel"]  # (row, column, channel) -> D
    row, column, channel, d = 5, 2, 1, 7
    assert weight[d, channel, row, column] == kernel[(row * 8 + column) * 3 + channel, d]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("visual.ln_post.bias"), "1 tensor.s. missing, the first 'visual.ln_post"),
        (lambda t: t.update(extra=np.ones(1)), "1 unknown tensor.s., the first 'extra'"),
        (
            lambda t: t.update(text_projection=np.ones((3, 4))),
            r"'text_projection' has shape \[3, 4\], this configuration needs \[32, 24\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(make_parts, make_weights, change, message):
    parts = make_parts()
    tensors = to_openclip(make_weights(parts), parts)
    change(tensors)
    with pytest.raises(ValueError, match=message):
        from_openclip(tensors, {}, parts)


def test_a_decoder_is_neither_lost_nor_invented(make_parts, make_weights):
    parts = make_parts(decoder="queries")
    params = make_weights(parts)
    tensors, captions = to_openclip(params, parts), decoder_tensors(params, parts)
    with pytest.raises(ValueError, match="decoder tensor.s. missing, the first 'decoder/"):
        from_openclip(tensors, {}, parts)
    with pytest.raises(ValueError, match="unknown decoder tensor"):
        from_openclip(tensors, captions, make_parts())
    with pytest.raises(ValueError, match="unknown parameter.s., the first 'decoder/"):
        to_openclip(params, make_parts())


@pytest.mark.parametrize("heads_axis", [False, True])
def test_their_jax_arrays_become_our_parameters(make_parts, make_weights, heads_axis):
    parts = make_parts(decoder="queries", bias=True)
    params = make_weights(parts)
    arrays = in_their_jax(params, parts, heads_axis)
    assert arrays["img/Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel"].shape == (48, 80)
    query = "txt/Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
    assert arrays[query].shape == ((32, 2, 16) if heads_axis else (32, 32))
    same_trees(from_jax(arrays, parts), params)
    for name in ("img/cls", query, "txt_decoder/learnable_tokens", "t"):
        without = {key: value for key, value in arrays.items() if key != name}
        with pytest.raises(ValueError, match=f"missing, the first '{name}'"):
            from_jax(without, parts)
        with pytest.raises(ValueError, match=f"array '{name}' has shape"):
            from_jax({**arrays, name: arrays[name][..., None, None]}, parts)
    with pytest.raises(ValueError, match="unknown array.s., the first 'img/pos_embedding'"):
        from_jax({**arrays, "img/pos_embedding": np.ones(3)}, parts)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_the_position_code_is_the_model_s(grid):
    h, w = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    positions = np.stack([np.zeros_like(h), h, w], -1)[None]
    code = position_code(*grid, 48)
    assert not code[0].any()
    np.testing.assert_allclose(code[1:], sincos_2d(positions, 48)[0], atol=1e-6)
