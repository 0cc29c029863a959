"""The encoder: parity with float64 numpy, invariances, published sizes, execution options."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import traverse_util

from codecvit.models import ViT, ViTConfig
from codecvit.models.config import REMAT

SMALL = ViTConfig(width=64, depth=2, num_heads=2, mlp_dim=96, patch=4)
L = 24


def batch(rows=2, tokens=L, patch=4, seed=0):
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (rows, tokens, patch * patch * 3), dtype=np.uint8)
    positions = rng.integers(0, 60, (rows, tokens, 3)).astype(np.int32)
    return patches, positions


def random_params(cfg=SMALL, seed=0):
    """Every leaf away from its initial value, so that no bias or scale can be forgotten."""
    shapes = jax.eval_shape(ViT(cfg).init, jax.random.key(0), *batch(patch=cfg.patch))["params"]
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        if path[-1].key == "scale":
            return (1 + 0.2 * rng.normal(size=x.shape)).astype(np.float32)
        return (rng.normal(size=x.shape) * (x.shape[-2] if x.ndim > 1 else 16) ** -0.5).astype(
            np.float32
        )

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def forward(params, *inputs, cfg=SMALL, **options):
    run = jax.jit(lambda p, *a: ViT(cfg).apply({"params": p}, *a, **options))
    return jax.tree.map(np.asarray, run(params, *inputs))


@pytest.fixture(scope="module")
def params():
    return random_params()


@pytest.mark.parametrize(("eps", "theta"), [(1e-6, 10000.0), (0.1, 100.0)])
def test_equals_the_float64_reference(params, eps, theta):
    patches, positions = batch()
    cfg = dataclasses.replace(SMALL, layer_norm_eps=eps, rope_theta=theta)
    lengths = np.array([L, 15], np.int32)
    out = forward(params, patches, positions, lengths, cfg=cfg, hidden_states=True)
    exact = jax.tree.map(lambda x: x.astype(np.float64), params)
    for row, n in enumerate(lengths):
        tokens, pooled, states = reference.vit(
            exact, patches[row, :n], positions[row, :n], heads=2, eps=eps, theta=theta
        )
        np.testing.assert_allclose(out["tokens"][row, :n], tokens, atol=5e-5)
        np.testing.assert_allclose(out["pooled"][row], pooled, atol=5e-5)
        assert len(out["hidden_states"]) == len(states) == SMALL.depth + 1
        for got, want in zip(out["hidden_states"], states, strict=True):
            np.testing.assert_allclose(got[row, :n], want, atol=5e-5)


def test_the_heads_norm_has_the_published_epsilon(params):
    """1e-6, which shows where what the attention gathers is small."""
    small = jax.tree.map(lambda x: x, params)
    small["head"]["attn"]["out"] = jax.tree.map(lambda x: 1e-3 * x, params["head"]["attn"]["out"])
    patches, positions = batch()
    lengths = np.array([L, 15], np.int32)
    pooled = forward(small, patches, positions, lengths)["pooled"]
    exact = jax.tree.map(lambda x: x.astype(np.float64), small)
    want = reference.vit(exact, patches[0], positions[0], heads=2)[1]
    np.testing.assert_allclose(pooled[0], want, atol=5e-5)


def test_tree_is_the_documented_one(params):
    shapes = {k: v.shape for k, v in traverse_util.flatten_dict(params, sep="/").items()}
    D, F, N = 64, 96, 2
    linear = {
        "attn/qkv": (D, 3 * D), "attn/out": (D, D), "mlp/fc1": (D, F), "mlp/fc2": (F, D),
    }  # fmt: skip
    want = {"patch_embed/kernel": (48, D), "head/probe": (1, 1, D), "head/norm/scale": (D,)}
    for name, (i, o) in linear.items():
        want[f"blocks/{name}/kernel"], want[f"blocks/{name}/bias"] = (N, i, o), (N, o)
        want[f"head/{name}/kernel"], want[f"head/{name}/bias"] = (i, o), (o,)
    for name, lead in {
        "layernorm_pre": (), "layernorm_post": (), "blocks/norm1": (N,), "blocks/norm2": (N,),
    }.items():  # fmt: skip
        want[f"{name}/scale"] = want[f"{name}/bias"] = (*lead, D)
    assert shapes == want


@pytest.mark.parametrize(
    ("variant", "total", "head"),
    [("B/14", 92_595_456, 7_086_336), ("L/14", 315_509_760, 12_594_176),
     ("H/14", 650_110_720, 19_674_880)],
)  # fmt: skip
def test_published_sizes(variant, total, head):
    cfg = ViTConfig.from_variant(variant)
    shapes = jax.eval_shape(ViT(cfg).init, jax.random.key(0), *batch(patch=14))["params"]

    def count(tree):
        return sum(x.size for x in jax.tree.leaves(tree))

    assert count(shapes) == total and count(shapes["head"]) == head
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_padding_changes_nothing(params):
    """Same numbers and gradients with garbage in more padding; tokens past the length are zero."""
    patches, positions = batch()
    lengths = np.array([L, 9], np.int32)
    long_patches, long_positions = batch(tokens=L + 17, seed=5)
    for row, n in enumerate(lengths):
        long_patches[row, :n], long_positions[row, :n] = patches[row, :n], positions[row, :n]
    short = forward(params, patches, positions, lengths)
    long = forward(params, long_patches, long_positions, lengths)
    np.testing.assert_allclose(long["pooled"], short["pooled"], atol=1e-5)
    np.testing.assert_allclose(long["tokens"][:, :L], short["tokens"], atol=1e-5)
    assert not long["tokens"][0, L:].any() and not long["tokens"][1, 9:].any()
    assert short["tokens"][1, 8].any()
    full = forward(params, patches, positions)  # no lengths: every row is full
    np.testing.assert_allclose(full["tokens"][0], short["tokens"][0], atol=1e-5)

    def loss(p, *inputs):
        out = ViT(SMALL).apply({"params": p}, *inputs, lengths)
        return (out["pooled"] ** 2).sum() + (out["tokens"] ** 3).sum()

    a = jax.jit(jax.grad(loss))(params, patches, positions)
    b = jax.jit(jax.grad(loss))(params, long_patches, long_positions)
    assert_trees_close(a, b, 1e-4)


def test_order_of_tokens_and_rows_is_free(params):
    """Positions carry the order: permuted patches, permuted tokens, the same pooled vector."""
    patches, positions = batch(rows=3)
    lengths = np.array([L, 9, 20], np.int32)
    out = forward(params, patches, positions, lengths)
    rows, order = [2, 0, 1], np.arange(L)
    order[:9] = np.random.default_rng(0).permutation(9)
    permuted = forward(params, patches[rows][:, order], positions[rows][:, order], lengths[rows])
    np.testing.assert_allclose(permuted["tokens"], out["tokens"][rows][:, order], atol=1e-5)
    np.testing.assert_allclose(permuted["pooled"], out["pooled"][rows], atol=1e-5)
    moved = forward(params, patches[rows][:, order], positions[rows], lengths[rows])
    assert np.abs(moved["pooled"] - out["pooled"][rows]).max() > 1e-3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_position_axis_matters(params, axis):
    patches, positions = batch()
    other = positions.copy()
    other[..., axis] = other[:, ::-1, axis]
    a, b = (forward(params, patches, p)["pooled"] for p in (positions, other))
    assert np.abs(a - b).max() > 1e-3


def loss_of(out):
    """A scalar that depends on every output."""
    tokens, pooled = (out[name].astype(jnp.float32) for name in ("tokens", "pooled"))
    return (pooled**2).mean() + (tokens**3).mean()


def run_loss(cfg, params, place=lambda x: x):
    patches, positions = batch(rows=8)
    inputs = [place(x) for x in (patches, positions, np.array([L, 9] * 4, np.int32))]

    def loss(p, *inputs):
        return loss_of(ViT(cfg).apply({"params": p}, *inputs))

    return jax.jit(jax.value_and_grad(loss))(params, *inputs)


@pytest.fixture(scope="module")
def plain_loss(params):
    return run_loss(SMALL, params)


@pytest.mark.parametrize(
    ("scan", "remat"),
    [(s, r) for s in (True, False) for r in REMAT if (s, r) != (SMALL.scan, SMALL.remat)],
)
def test_scan_and_remat_change_no_number(params, plain_loss, scan, remat):
    got, grads = run_loss(dataclasses.replace(SMALL, scan=scan, remat=remat), params)
    np.testing.assert_allclose(got, plain_loss[0], rtol=1e-6)
    assert_trees_close(grads, plain_loss[1], 1e-5)


def test_scan_and_remat_change_no_initial_value():
    inputs = batch()
    other = dataclasses.replace(SMALL, scan=False, remat="full")
    a, b = (jax.jit(ViT(cfg).init)(jax.random.key(3), *inputs) for cfg in (SMALL, other))
    assert_trees_close(a, b, 0)


def test_remat_recomputes():
    """Each policy keeps less for the backward pass than the one before."""
    inputs = batch(rows=8, tokens=64)
    shapes = jax.eval_shape(ViT(SMALL).init, jax.random.key(0), *inputs)["params"]
    kept = {}
    for remat in ("none", "dots", "full"):
        vit = ViT(dataclasses.replace(SMALL, remat=remat))

        def residuals(p, vit=vit):
            return jax.vjp(lambda p: vit.apply({"params": p}, *inputs)["pooled"], p)[1]

        leaves = jax.tree.leaves(jax.eval_shape(residuals, shapes))
        kept[remat] = sum(x.size * x.dtype.itemsize for x in leaves)
    assert kept["none"] > 1.2 * kept["dots"] > 1.2 * 1.2 * kept["full"]


def test_scan_runs_one_block():
    """Scanned, the program is a loop over the blocks; unrolled, there is no loop."""
    loops = {}
    for scan in (True, False):
        vit = ViT(dataclasses.replace(SMALL, scan=scan))
        apply = jax.jit(lambda p, v=vit: v.apply({"params": p}, *batch())["pooled"])
        loops[scan] = apply.lower(random_params()).compile().as_text().count(" while(")
    assert loops == {True: 1, False: 0}


def test_bfloat16_computes_low_and_stores_high(params):
    cfg = dataclasses.replace(SMALL, dtype="bfloat16")
    patches, positions = batch()
    low, high = forward(params, patches, positions, cfg=cfg), forward(params, patches, positions)
    assert low["tokens"].dtype == low["pooled"].dtype == jnp.bfloat16
    for name in ("tokens", "pooled"):
        a, b = low[name].astype(np.float64).ravel(), high[name].astype(np.float64).ravel()
        assert 0.999 < a @ b / np.linalg.norm(a) / np.linalg.norm(b) < 1
    initial = jax.jit(ViT(cfg).init)(jax.random.key(0), patches, positions)["params"]
    for tree in (initial, run_loss(cfg, params)[1]):
        assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(tree))
    # Masters that were rounded on the way into the tree would equal their own rounding.
    kernel = initial["blocks"]["mlp"]["fc1"]["kernel"]
    assert (kernel != kernel.astype(jnp.bfloat16)).any()


def test_initialisation():
    """Linear N(0, 0.02), biases 0, norms 1 and 0, probe N(0, 1), head's q|k|v Xavier-uniform."""
    cfg = ViTConfig.from_variant("Ti/14", depth=2)
    params = jax.jit(ViT(cfg).init)(jax.random.key(0), *batch(patch=14))["params"]
    D = cfg.width
    for path, x in traverse_util.flatten_dict(params, sep="/").items():
        std = float(np.std(x))
        if path == "head/probe":
            assert 0.8 < std < 1.2
        elif path == "head/attn/qkv/kernel":
            limit = (6 / (4 * D)) ** 0.5
            assert np.abs(x).max() <= limit and std == pytest.approx(limit / 3**0.5, rel=0.02)
        elif path.endswith("kernel"):
            assert std == pytest.approx(0.02, rel=0.03) and abs(np.mean(x)) < 1e-3, path
        else:
            assert (np.asarray(x) == (1 if path.endswith("scale") else 0)).all(), path
    first, second = params["blocks"]["mlp"]["fc1"]["kernel"]
    assert (first != second).any()  # layers draw their own numbers


def test_sharded_parameters_give_the_same_numbers(params, plain_loss):
    """Parameters spread over a mesh are gathered layer by layer; without one, nothing is."""
    mesh = jax.make_mesh(
        (2, 2),
        ("replica", "fsdp"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:4],
    )

    def place(x, *spec):
        return jax.device_put(x, jax.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))

    with jax.set_mesh(mesh):
        sharded = jax.tree.map(lambda x: place(x, *[None] * (x.ndim - 1), "fsdp"), params)
        got, grads = run_loss(SMALL, sharded, lambda x: place(x, ("replica", "fsdp")))
        low = dataclasses.replace(SMALL, dtype="bfloat16")
        pooled = forward(sharded, *batch(), cfg=low)["pooled"]
        apply = jax.jit(lambda p: ViT(low).apply({"params": p}, *batch()))
        gathers = [x for x in apply.lower(sharded).as_text().split("\n") if "constraint" in x]
    # Four matrices of a block, four and the probe of the head, cast before they travel; vectors
    # stay float32.
    assert sum("bf16" in x for x in gathers) == 9 and sum("f32" in x for x in gathers) == 13
    np.testing.assert_allclose(got, plain_loss[0], rtol=1e-5)
    assert_trees_close(grads, plain_loss[1], 1e-5)
    want = forward(params, *batch(), cfg=low)["pooled"]
    np.testing.assert_allclose(pooled.astype(np.float32), want.astype(np.float32), atol=0.05)


def test_variants():
    cfg = ViTConfig.from_variant("Ti/16", depth=4, dtype="bfloat16")
    assert (cfg.width, cfg.depth, cfg.num_heads, cfg.mlp_dim, cfg.patch) == (192, 4, 3, 768, 16)
    assert (cfg.layer_norm_eps, cfg.rope_theta) == (1e-6, 10000.0)  # as published
    for wrong in ("XL/14", "B", "B/big"):
        with pytest.raises(ValueError, match="one of Ti, S, B, L, H"):
            ViTConfig.from_variant(wrong)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("remat", "some", "none, dots, full"),
        ("dtype", "float16", "float32, bfloat16"),
        ("attention_impl", "flash", "auto, xla, cudnn"),
        ("num_heads", 5, "multiple of num_heads = 5"),
        ("num_heads", 12, "head_dim = 16"),
        ("depth", 0, "depth = 0"),
        ("droppath", 0.1, "'droppath' is unknown"),
    ],
)
def test_wrong_fields_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig.from_variant("Ti/14", **{field: value})


def test_wrong_patches_are_named(params):
    patches, positions = batch(patch=6)
    with pytest.raises(ValueError, match=r"108 values each.*patch = 4 takes 48"):
        forward(params, patches, positions)
    with pytest.raises(ValueError, match="must be uint8"):
        forward(params, batch()[0].astype(np.float32), positions)


def assert_trees_close(a, b, tolerance):
    """Leaf by leaf, relative to the largest entry of the leaf."""
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        error = np.abs(x - y).max() / (np.abs(y).max() + 1e-6)
        assert error <= tolerance, f"{jax.tree_util.keystr(path)}: {error}"
