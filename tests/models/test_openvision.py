"""OpenVision's vision tower: parity with float64 numpy, its position code, padding, resolution."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import traverse_util
from random_params import assert_close_in_direction, exact, random_params

from codecvit.models.openvision import SIZES, OpenVisionConfig, OpenVisionViT, sincos_2d

SMALL = OpenVisionConfig(width=48, depth=2, num_heads=2, mlp_dim=80, patch=4)
L = 12
LENGTHS = np.array([L, 7], np.int32)


def batch(rows=2, tokens=L, patch=4, seed=0):
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (rows, tokens, patch * patch * 3), dtype=np.uint8)
    positions = rng.integers(0, 30, (rows, tokens, 3)).astype(np.int32)
    return patches, positions


def forward(params, *inputs, cfg=SMALL):
    run = jax.jit(lambda p, *a: OpenVisionViT(cfg).apply({"params": p}, *a))
    return jax.tree.map(np.asarray, run(params, *inputs))


@pytest.fixture(scope="module")
def params():
    return random_params(OpenVisionViT(SMALL), *batch())


def test_equals_the_float64_reference(params):
    patches, positions = batch()
    out = forward(params, patches, positions, LENGTHS)
    for row, n in enumerate(LENGTHS):
        tokens, pooled = reference.openvision(
            exact(params), patches[row, :n], positions[row, :n], heads=2
        )
        np.testing.assert_allclose(out["tokens"][row, :n], tokens, atol=3e-5)
        np.testing.assert_allclose(out["pooled"][row], pooled, atol=3e-5)
        assert not out["tokens"][row, n:].any()


def test_tree_is_the_documented_one(params):
    shapes = {k: v.shape for k, v in traverse_util.flatten_dict(params, sep="/").items()}
    D, F, N = 48, 80, 2
    want = {"patch_embed/kernel": (48, D), "cls": (D,)}
    for name, (i, o) in {
        "attn/qkv": (D, 3 * D), "attn/out": (D, D), "mlp/fc1": (D, F), "mlp/fc2": (F, D),
    }.items():  # fmt: skip
        want[f"blocks/{name}/kernel"], want[f"blocks/{name}/bias"] = (N, i, o), (N, o)
    for name, lead in {"layernorm_post": (), "blocks/norm1": (N,), "blocks/norm2": (N,)}.items():
        want[f"{name}/scale"] = want[f"{name}/bias"] = (*lead, D)
    assert shapes == want


@pytest.mark.parametrize("width", [8, 192, 1408])
def test_sincos_is_that_of_moco_v3(width):
    positions = np.array([[[0, 0, 0], [9, 1, 0], [0, 0, 1], [0, 23, 31], [0, 63, 2]]], np.int32)
    want = np.stack([reference.sincos(p, width) for p in positions[0]])
    got = np.asarray(jax.jit(sincos_2d, static_argnums=1)(positions, width))
    np.testing.assert_allclose(got[0], want, atol=1e-5)
    # The order, by hand: column 1 of row 0 turns the first half of the channels only.
    quarter = width // 4
    np.testing.assert_allclose(got[0, 2, 0], np.sin(1.0), atol=1e-6)
    np.testing.assert_allclose(got[0, 2, quarter], np.cos(1.0), atol=1e-6)
    np.testing.assert_array_equal(got[0, 2, 2 * quarter : 3 * quarter], 0)
    np.testing.assert_array_equal(got[0, 2, 3 * quarter :], 1)


def test_padding_has_no_influence(params):
    """Same numbers with garbage in more padding."""
    patches, positions = batch()
    long_patches, long_positions = batch(tokens=L + 5, seed=5)
    for row, n in enumerate(LENGTHS):
        long_patches[row, :n], long_positions[row, :n] = patches[row, :n], positions[row, :n]
    short = forward(params, patches, positions, LENGTHS)
    long = forward(params, long_patches, long_positions, LENGTHS)
    np.testing.assert_allclose(long["tokens"][:, :L], short["tokens"], atol=1e-5)
    np.testing.assert_allclose(long["pooled"], short["pooled"], atol=1e-5)
    assert not long["tokens"][0, L:].any()
    full = forward(params, patches[:1], positions[:1])  # no lengths: every row is full
    np.testing.assert_allclose(full["tokens"][0], short["tokens"][0], atol=1e-5)
    np.testing.assert_allclose(full["pooled"][0], short["pooled"][0], atol=1e-5)


def test_pooled_is_the_mean_of_the_patches_without_cls(params):
    out = forward(params, *batch(), LENGTHS)
    for row, n in enumerate(LENGTHS):
        mean = out["tokens"][row, :n].astype(np.float64).mean(0)
        want = reference.layer_norm(mean, exact(params["layernorm_post"]))
        np.testing.assert_allclose(out["pooled"][row], want, atol=1e-5)
    # The class token is not in that mean, but it goes through the blocks with the patches.
    other = forward({**params, "cls": -params["cls"]}, *batch(), LENGTHS)
    assert np.abs(other["tokens"] - out["tokens"]).max() > 1e-3


def test_a_row_without_tokens_is_finite(params):
    out = forward(params, *batch(), np.array([L, 0], np.int32))
    assert np.isfinite(out["pooled"]).all() and not out["tokens"][1].any()


def test_positions_carry_the_order(params):
    """Patches that move with their positions change nothing; without them, they do. Time is
    unseen.
    """
    patches, positions = batch()
    out = forward(params, patches, positions)
    order = np.random.default_rng(0).permutation(L)
    together = forward(params, patches[:, order], positions[:, order])
    np.testing.assert_allclose(together["tokens"], out["tokens"][:, order], atol=1e-5)
    np.testing.assert_allclose(together["pooled"], out["pooled"], atol=1e-5)
    apart = forward(params, patches, positions[:, order])
    assert np.abs(apart["pooled"] - out["pooled"]).max() > 1e-3
    swapped = forward(params, patches, positions[..., [0, 2, 1]])  # rows for columns
    assert np.abs(swapped["pooled"] - out["pooled"]).max() > 1e-3
    later = forward(params, patches, positions + np.array([7, 0, 0], np.int32))
    np.testing.assert_array_equal(later["pooled"], out["pooled"])


def test_any_resolution_has_the_same_parameters(params):
    """No parameter depends on the number of patches, and a larger grid runs as it is."""
    small, large = (
        jax.eval_shape(OpenVisionViT(SMALL).init, jax.random.key(0), *batch(tokens=n))
        for n in (4, 36)
    )
    assert small == large
    assert forward(params, *batch(tokens=36))["tokens"].shape == (2, 36, 48)


def test_bfloat16_computes_low_and_stores_high(params):
    cfg = dataclasses.replace(SMALL, dtype="bfloat16")
    low, high = forward(params, *batch(), cfg=cfg), forward(params, *batch())
    assert low["tokens"].dtype == jnp.bfloat16 and low["pooled"].dtype == jnp.float32
    for name in ("tokens", "pooled"):
        assert_close_in_direction(low[name], high[name])
    initial = jax.jit(OpenVisionViT(cfg).init)(jax.random.key(0), *batch())["params"]
    assert {x.dtype for x in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    kernel = initial["blocks"]["mlp"]["fc1"]["kernel"]
    assert (kernel != kernel.astype(jnp.bfloat16)).any()  # not rounded on the way into the tree


def test_initialisation():
    cfg = OpenVisionConfig.from_variant("Ti/14", depth=2)
    params = jax.jit(OpenVisionViT(cfg).init)(jax.random.key(0), *batch(patch=14))["params"]
    blocks = params["blocks"]
    for kernel, std in [
        (blocks["attn"]["qkv"], 0.02),
        (blocks["attn"]["out"], 0.02),
        (blocks["mlp"]["fc1"], 0.02),
        (blocks["mlp"]["fc2"], (0.3072 / 192) ** 0.5),  # fan-out: the width
        (params["patch_embed"], (2 / 588) ** 0.5),
    ]:
        assert np.std(kernel["kernel"]) == pytest.approx(std, rel=0.03)
    assert np.std(params["cls"]) == pytest.approx(1e-6, rel=0.2)
    first, second = blocks["mlp"]["fc1"]["kernel"]
    assert (first != second).any()  # layers draw their own numbers


def test_variants():
    cfg = OpenVisionConfig.from_variant("So400m/14", dtype="bfloat16")
    assert (cfg.width, cfg.depth, cfg.num_heads, cfg.mlp_dim) == (1152, 27, 16, 4304)
    assert (cfg.patch, cfg.layer_norm_eps) == (14, 1e-6)
    assert OpenVisionConfig.from_variant("H/14").num_heads == 16  # our own H has 20
    for wrong in ("SoViT400m/14", "L", "L/big", "G/14"):
        with pytest.raises(ValueError, match=f"one of {', '.join(SIZES)}"):
            OpenVisionConfig.from_variant(wrong)
    with pytest.raises(ValueError, match=r"OpenVisionConfig.*'mask_ratio' is unknown"):
        OpenVisionConfig.from_variant("L/14", mask_ratio=0.5)
    with pytest.raises(ValueError, match="OpenVisionConfig.width = 6 must be a multiple of 4"):
        OpenVisionConfig.from_variant("L/14", width=6, num_heads=1)


def test_wrong_patches_are_named(params):
    with pytest.raises(ValueError, match=r"108 values each.*patch = 4 takes 48"):
        forward(params, *batch(patch=6))
