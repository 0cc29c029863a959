"""Schedules, groups and decay of the optimiser."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codecvit.trainers.optim import (
    SCHEDULES,
    decay_mask,
    group_labels,
    make_optimizer,
    make_schedule,
)
from codecvit.trainers.pretrain_config import HeadConfig
from codecvit.trainers.run_config import OptimConfig

HEADS = {"heads/main": HeadConfig(num_classes=8)}


def params(value=1.0):
    return {
        "encoder": {
            "blocks": {
                "norm1": {"scale": jnp.full((2, 3), value), "bias": jnp.full((2, 3), value)},
                "attn": {
                    "qkv": {"kernel": jnp.full((2, 3, 9), value), "bias": jnp.full((2, 9), value)}
                },
            },
            "head": {"probe": jnp.full((1, 1, 3), value)},
        },
        "heads": {"main": {"centres": jnp.full((8, 3), value)}},
    }


@pytest.mark.parametrize(
    ("name", "at_half", "at_end"),
    [
        ("linear", 0.5, 0.0),
        ("poly2", 0.25, 0.0),
        ("cosine", 0.5, 0.0),
        ("constant", 1.0, 1.0),
        ("rsqrt", (10 / 60) ** 0.5, (10 / 110) ** 0.5),
    ],
)
def test_schedules_have_their_golden_values(name, at_half, at_end):
    schedule = make_schedule(OptimConfig(lr=2.0, schedule=name, warmup_steps=10), 110)
    assert schedule(0) == pytest.approx(0.2)  # a tenth of the peak: neither 0 nor the full rate
    assert schedule(9) == pytest.approx(2.0)
    assert schedule(10) == pytest.approx(2.0)
    assert schedule(60) == pytest.approx(2.0 * at_half, abs=1e-6)
    assert schedule(110) == pytest.approx(2.0 * at_end, abs=1e-6)


def test_wsd_is_flat_until_its_cooldown():
    optim = OptimConfig(lr=2.0, schedule="wsd", warmup_steps=10, cooldown_steps=20)
    schedule = make_schedule(optim, 110)
    assert [float(schedule(step)) for step in (0, 10, 50, 90)] == pytest.approx([0.2, 2, 2, 2])
    assert schedule(100) == pytest.approx(1.0)
    assert schedule(109) == pytest.approx(0.1)  # the last step still trains
    with pytest.raises(ValueError, match="'wsd' needs config.optim.cooldown_steps"):
        make_schedule(OptimConfig(schedule="wsd"), 10)
    with pytest.raises(ValueError, match="schedule 'cosine' has none, rsqrt and wsd do"):
        make_schedule(OptimConfig(schedule="cosine", cooldown_steps=1), 10)
    with pytest.raises(ValueError, match=r"cooldown_steps = 9 must lie in 0\.\.8"):
        make_schedule(OptimConfig(schedule="rsqrt", warmup_steps=2, cooldown_steps=9), 10)


def test_rsqrt_with_a_cooldown_ends_near_zero():
    optim = OptimConfig(lr=1.0, schedule="rsqrt", warmup_steps=10, cooldown_steps=20)
    schedule = make_schedule(optim, 110)
    assert schedule(80) == pytest.approx((10 / 80) ** 0.5)
    assert schedule(100) == pytest.approx((10 / 100) ** 0.5 * 0.5)


def test_layer_decay_scales_each_layers_step():
    """Block i of 2 at decay^(2 - i), what follows the blocks at the whole rate."""
    tree = params()
    before = {"patch_embed": {"kernel": jnp.ones((4, 3))}, "layernorm_pre": {"scale": jnp.ones(3)}}
    before["cls"] = jnp.ones(3)  # OpenVision's
    tree["encoder"] |= {**before, "layernorm_post": {"scale": jnp.ones(3)}}
    optim = OptimConfig(lr=0.1, weight_decay=0.0, schedule="constant", layer_decay=0.5)
    optimizer = make_optimizer(optim, HEADS, total_steps=10, depth=2)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, tree), optimizer.init(tree), tree)
    encoder = updates["encoder"]
    for leaf in jax.tree.leaves(encoder["blocks"]):
        np.testing.assert_allclose(leaf[0], -0.1 * 0.25, rtol=1e-5)
        np.testing.assert_allclose(leaf[1], -0.1 * 0.5, rtol=1e-5)
    for leaf in jax.tree.leaves([encoder[name] for name in before]):
        np.testing.assert_allclose(leaf, -0.1 * 0.125, rtol=1e-5)
    for leaf in jax.tree.leaves((encoder["head"], encoder["layernorm_post"])):
        np.testing.assert_allclose(leaf, -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["heads"]["main"]["centres"][0, 0], -0.1, rtol=0.1)


def test_frozen_parameters_have_no_step_and_no_state():
    optim = OptimConfig(lr=0.1, schedule="constant", freeze=("encoder/blocks", "centres$"))
    tree = params()
    optimizer = make_optimizer(optim, HEADS, total_steps=10, depth=2)
    state = optimizer.init(tree)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, tree), state, tree)
    for leaf in jax.tree.leaves((updates["encoder"]["blocks"], updates["heads"])):
        assert not leaf.any()
    assert updates["encoder"]["head"]["probe"].all()
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    assert sum(sizes) <= 2 * tree["encoder"]["head"]["probe"].size + 8  # Adam's two, counters


def test_a_regex_that_freezes_nothing_is_refused():
    optimizer = make_optimizer(OptimConfig(freeze=("blokcs",)), HEADS, 10, depth=2)
    with pytest.raises(ValueError, match=r"config\.optim\.freeze: 'blokcs' matches no parameter"):
        optimizer.init(params())
    with pytest.raises(ValueError, match=r"'\(' is no regex"):
        OptimConfig(freeze=("(",))


def test_a_schedule_without_warm_up_starts_at_its_peak():
    assert make_schedule(OptimConfig(lr=1.0), 10)(0) == 1.0


def test_unknown_schedule_and_long_warm_up_are_refused():
    with pytest.raises(ValueError, match=f"'steps' is not one of {', '.join(sorted(SCHEDULES))}"):
        make_schedule(OptimConfig(schedule="steps"), 10)
    with pytest.raises(ValueError, match="warmup_steps = 10 must lie in 0..9"):
        make_schedule(OptimConfig(warmup_steps=10), 10)


def test_only_kernels_and_centres_decay():
    mask = decay_mask(params())
    decayed = [
        jax.tree_util.keystr(p) for p, yes in jax.tree_util.tree_leaves_with_path(mask) if yes
    ]
    assert decayed == [
        "['encoder']['blocks']['attn']['qkv']['kernel']",
        "['heads']['main']['centres']",
    ]


def step(gradients, optim, heads=HEADS):
    optimizer = make_optimizer(optim, heads, total_steps=100, depth=2)
    start = params()
    updates, _ = optimizer.update(gradients, optimizer.init(start), start)
    return updates


def test_weight_decay_moves_what_has_no_gradient():
    zero = jax.tree.map(jnp.zeros_like, params())
    updates = step(zero, OptimConfig(lr=0.1, weight_decay=0.5, schedule="constant"))
    blocks = updates["encoder"]["blocks"]
    np.testing.assert_allclose(blocks["attn"]["qkv"]["kernel"], -0.1 * 0.5, rtol=1e-6)
    np.testing.assert_allclose(blocks["attn"]["qkv"]["bias"], 0)
    np.testing.assert_allclose(blocks["norm1"]["scale"], 0)
    np.testing.assert_allclose(updates["encoder"]["head"]["probe"], 0)
    np.testing.assert_allclose(updates["heads"]["main"]["centres"], -0.1 * 0.05, rtol=1e-6)


def test_a_huge_head_gradient_does_not_shrink_the_encoders_step():
    # eps as large as the clipped gradient makes Adam's step depend on its size.
    optim = OptimConfig(lr=0.1, weight_decay=0.0, schedule="constant", clip_norm=1.0, eps=1.0)
    ones = jax.tree.map(jnp.ones_like, params())
    heads = {"heads/main": HeadConfig(num_classes=8, weight_decay=0.0)}
    small = step(ones, optim, heads)
    ones["heads"]["main"]["centres"] *= 1e6
    large = step(ones, optim, heads)
    jax.tree.map(np.testing.assert_array_equal, small["encoder"], large["encoder"])
    clipped = np.asarray(large["heads"]["main"]["centres"])
    g = 5.0 / np.sqrt(24)  # 24 equal values clipped to norm 5
    np.testing.assert_allclose(clipped, -0.1 * g / (g + 1), rtol=1e-5)


def test_the_heads_learning_rate_is_a_multiple():
    heads = {"heads/main": HeadConfig(num_classes=8, lr_mult=3.0, weight_decay=0.0)}
    optim = OptimConfig(lr=0.1, weight_decay=0.0, schedule="constant")
    updates = step(jax.tree.map(jnp.ones_like, params()), optim, heads)
    np.testing.assert_allclose(updates["encoder"]["head"]["probe"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["heads"]["main"]["centres"], -0.3, rtol=1e-5)


def _matrix_params(seed=0):
    rng = np.random.default_rng(seed)
    tree = params()
    tree["encoder"]["blocks"]["attn"]["qkv"]["kernel"] = jnp.asarray(
        rng.normal(size=(2, 6, 9)), jnp.float32
    )
    return tree


def test_muon_steps_the_matrices_of_each_layer_orthogonally():
    """All singular values of a layer's step are near muon_lr, whatever the gradient's are."""
    config = OptimConfig(name="muon", lr=1e-3, muon_lr=0.02, schedule="constant", weight_decay=0.0)
    tree = _matrix_params()
    optimizer = make_optimizer(config, HEADS, 10, depth=2)
    grads = _matrix_params(1)
    # One layer with a gradient a thousand times larger, whose singular values differ by 100.
    skew = np.diag([1.0, 0.3, 0.1, 0.05, 0.02, 0.01]) @ np.eye(6, 9) * 1000
    kernel = grads["encoder"]["blocks"]["attn"]["qkv"]["kernel"].at[0].set(skew)
    grads["encoder"]["blocks"]["attn"]["qkv"]["kernel"] = kernel
    updates, _ = optimizer.update(grads, optimizer.init(tree), tree)
    steps = np.asarray(updates["encoder"]["blocks"]["attn"]["qkv"]["kernel"])
    values = np.linalg.svd(steps, compute_uv=False)
    assert values.max() < 0.02 * 1.3 * (9 / 6) ** 0.5
    assert values[1].min() > 0.02 * 0.5  # an ordinary gradient: all directions alike
    assert values[0][:3].min() > 0.02 * 0.5


def test_muon_leaves_everything_else_to_adamw():
    tree, grads = _matrix_params(), _matrix_params(1)
    found = {}
    for name in ("adamw", "muon"):
        optimizer = make_optimizer(OptimConfig(name=name, schedule="constant"), HEADS, 10, depth=2)
        found[name], _ = optimizer.update(grads, optimizer.init(tree), tree)
    for tree_ in found.values():
        tree_["encoder"]["blocks"]["attn"]["qkv"].pop("kernel")
    a, b = (jax.tree.leaves(found[name]) for name in ("adamw", "muon"))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-9)


def moments(optim, head):
    """Bytes of the moments by the part of the parameters that they belong to."""
    optimizer = make_optimizer(optim, {"heads/main": head}, 10, depth=2)
    sizes = {"kernel": 0, "bias": 0, "centres": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(optimizer.init(params())):
        name = jax.tree_util.keystr(path, simple=True, separator="/").rsplit("/", 1)[-1]
        if name in sizes and leaf.ndim:
            sizes[name] += leaf.nbytes
    return sizes


@pytest.mark.parametrize(("name", "halved"), [("adamw", 2 + 4), ("muon", 2)])
def test_a_bfloat16_first_moment_takes_half_the_memory(name, halved):
    """Of the encoder, Muon's momentum included, or of a head: each by its own field."""
    full, half = OptimConfig(name=name), OptimConfig(name=name, first_moment_dtype="bfloat16")
    head = HeadConfig(num_classes=8)
    small_head = HeadConfig(num_classes=8, first_moment_dtype="bfloat16")
    tree = params()
    kernel, bias = (tree["encoder"]["blocks"]["attn"]["qkv"][part] for part in ("kernel", "bias"))
    norm, centres = tree["encoder"]["blocks"]["norm1"]["bias"], tree["heads"]["main"]["centres"]
    want = {"kernel": halved * kernel.size, "bias": 6 * (bias.size + norm.size)}
    assert moments(half, head) == {**want, "centres": 8 * centres.size}
    want = {"kernel": (8 if name == "adamw" else 4) * kernel.size}
    want |= {"bias": 8 * (bias.size + norm.size), "centres": 6 * centres.size}
    assert moments(full, small_head) == want


def test_adams_constants_are_those_of_the_config():
    """Against Adam by hand, two steps of different gradients."""
    optim = OptimConfig(lr=0.1, b1=0.6, b2=0.7, eps=0.01, weight_decay=0.0, schedule="constant")
    optim = dataclasses.replace(optim, clip_norm=0.0)
    optimizer = make_optimizer(optim, HEADS, 10, depth=2)
    tree, m, v = params(), 0.0, 0.0
    state = optimizer.init(tree)
    for t, g in enumerate((2.0, -0.5), start=1):
        updates, state = optimizer.update(jax.tree.map(lambda x, g=g: g * x, tree), state, tree)
        m, v = 0.6 * m + 0.4 * g, 0.7 * v + 0.3 * g**2
        want = -0.1 * m / (1 - 0.6**t) / ((v / (1 - 0.7**t)) ** 0.5 + 0.01)
        np.testing.assert_allclose(updates["encoder"]["head"]["probe"], want, rtol=1e-5)


def test_a_huge_gradient_does_not_fill_muons_momentum():
    """Clipped, one of norm 10 and one of norm 10,000 leave the same behind for the next step."""
    optim = OptimConfig(name="muon", schedule="constant", weight_decay=0.0, clip_norm=1.0)
    optimizer = make_optimizer(optim, HEADS, 10, depth=2)
    update = jax.jit(optimizer.update)
    tree, first, second = (_matrix_params(seed) for seed in range(3))
    found = []
    for size in (1.0, 1e3):
        grads = jax.tree.map(lambda g, size=size: size * g, first)
        _, state = update(grads, optimizer.init(tree), tree)
        updates, _ = update(second, state, tree)
        found.append(updates["encoder"]["blocks"]["attn"]["qkv"]["kernel"])
    np.testing.assert_allclose(*found, atol=1e-5)


def test_muons_matrices_decay_at_their_own_rate():
    optim = OptimConfig(name="muon", muon_lr=0.02, weight_decay=0.5, schedule="constant")
    updates = step(jax.tree.map(jnp.zeros_like, params()), optim)
    kernel = updates["encoder"]["blocks"]["attn"]["qkv"]["kernel"]
    np.testing.assert_allclose(kernel, -0.02 * 0.5, rtol=1e-6)


def test_groups_go_by_whole_names():
    """Of heads `a` and `ab` each has its own group, in whatever order they stand."""
    tree = params()
    tree["heads"] = {name: {"centres": jnp.ones((8, 3))} for name in ("a", "ab")}
    for others in (("heads/a", "heads/ab"), ("heads/ab", "heads/a")):
        labels = group_labels(tree, OptimConfig(), others)
        assert labels["heads"] == {n: {"centres": f"heads/{n}"} for n in ("a", "ab")}


def test_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match=r"config.optim.name = 'sgd' must be adamw or muon"):
        make_optimizer(OptimConfig(name="sgd"), HEADS, 10, depth=2)
