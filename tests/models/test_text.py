"""The text tower: parity with float64 numpy, what sees what, execution options."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import traverse_util
from random_params import assert_close_in_direction, exact, random_params

from codecvit.models.text import SIZES, TextConfig, TextEncoder

SMALL = TextConfig(
    width=32, depth=2, num_heads=2, mlp_dim=48, vocab_size=50, context_length=9, embed_dim=20
)
IDS = np.random.default_rng(0).integers(0, 50, (3, 9)).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    return random_params(TextEncoder(SMALL), IDS)


def forward(params, ids=IDS, cfg=SMALL):
    run = jax.jit(lambda p, ids: TextEncoder(cfg).apply({"params": p}, ids))
    return jax.tree.map(np.asarray, run(params, ids))


def test_equals_the_float64_reference(params):
    out = forward(params)
    for row, ids in enumerate(IDS):
        tokens, pooled = reference.text(exact(params), ids, heads=2)
        np.testing.assert_allclose(out["tokens"][row], tokens, atol=2e-5)
        np.testing.assert_allclose(out["pooled"][row], pooled, atol=2e-5)


def test_tree_is_the_documented_one(params):
    flat = traverse_util.flatten_dict(params, sep="/")
    assert flat.pop("token_embed/embedding").shape == (50, 32)
    assert flat.pop("pos_embedding").shape == (9, 32)
    assert flat.pop("head/kernel").shape == (32, 20)
    assert flat.pop("layernorm_post/scale").shape == flat.pop("layernorm_post/bias").shape == (32,)
    assert all(name.startswith("blocks/") and x.shape[0] == 2 for name, x in flat.items())


def test_every_token_sees_every_other_padding_too(params):
    """Bidirectional and without a mask: any id changes every token of its row, and no other's."""
    before = forward(params)
    for place in (0, 4, 8):
        ids = IDS.copy()
        ids[1, place] = (ids[1, place] + 1) % 50
        after = forward(params, ids)
        assert (np.abs(after["tokens"][1] - before["tokens"][1]).max(-1) > 1e-4).all()
        assert np.abs(after["pooled"][1] - before["pooled"][1]).max() > 1e-4
        np.testing.assert_array_equal(after["pooled"][[0, 2]], before["pooled"][[0, 2]])


def test_order_counts(params):
    same = forward(params, IDS[:, ::-1].copy())["tokens"][:, ::-1]
    assert np.abs(same - forward(params)["tokens"]).max() > 1e-3


def test_bfloat16_is_close(params):
    low = forward(params, cfg=dataclasses.replace(SMALL, dtype="bfloat16"))
    high = forward(params)
    assert low["tokens"].dtype == jnp.bfloat16 and low["pooled"].dtype == jnp.float32
    for name in ("tokens", "pooled"):
        assert_close_in_direction(low[name], high[name])


@pytest.mark.parametrize("depth", [2, 8])
def test_initialisation_knows_its_depth(depth):
    cfg = TextConfig.from_variant("Ti", depth=depth, vocab_size=500)
    ids = np.zeros((1, 80), np.int32)
    params = jax.jit(TextEncoder(cfg).init)(jax.random.key(0), ids)["params"]
    into_residual = (192 * 2 * depth) ** -0.5
    for leaf, std in [
        (params["blocks"]["attn"]["qkv"]["kernel"], 192**-0.5),
        (params["blocks"]["attn"]["out"]["kernel"], into_residual),
        (params["blocks"]["mlp"]["fc1"]["kernel"], (2 * 192) ** -0.5),
        (params["blocks"]["mlp"]["fc2"]["kernel"], into_residual),
        (params["token_embed"]["embedding"], 0.02),
        (params["pos_embedding"], 0.01),
        (params["head"]["kernel"], 192**-0.5),
    ]:
        assert np.std(leaf) == pytest.approx(std, rel=0.03)
        assert leaf.dtype == jnp.float32


def test_wrong_values_are_named(params):
    for wrong in ("XL", "L/14"):
        with pytest.raises(ValueError, match=f"choose one of {', '.join(SIZES)}"):
            TextConfig.from_variant(wrong)
    with pytest.raises(ValueError, match="'causal' is unknown"):
        TextConfig.from_variant("L", causal=True)
    with pytest.raises(ValueError, match="TextConfig.vocab_size = 0 must be at least 1"):
        TextConfig.from_variant("L", vocab_size=0)
    with pytest.raises(ValueError, match="texts have 8 ids, but the model's context_length = 9"):
        forward(params, IDS[:, :8])
