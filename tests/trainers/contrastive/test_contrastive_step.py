"""One image-text step: what it learns, what it does not depend on, which parts it trains."""

import copy
import dataclasses

import jax
import numpy as np
import pytest
from train_steps import take_steps

from codecvit.trainers import contrastive_step
from codecvit.trainers.contrastive_config import ContrastiveConfig
from codecvit.trainers.run_config import MeshConfig


def batch(seed=0, rows=16):
    rng = np.random.default_rng(seed)
    target = rng.integers(5, 32, (rows, 16)).astype(np.int32)
    return {
        "patches": rng.integers(0, 256, (rows, 4, 588), np.uint8),
        "positions": np.tile([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]], (rows, 1, 1)),
        "length": rng.integers(2, 5, rows).astype(np.int32),
        "text_0": rng.integers(5, 32, (rows, 12)).astype(np.int32),
        "text_1": rng.integers(5, 32, (rows, 12)).astype(np.int32),
        "target": target,
        "target_mask": np.arange(16) < rng.integers(4, 17, (rows, 1)),
        "weight": np.ones(rows, np.float32),
        "index": np.arange(rows, dtype=np.int32) + 100 * seed,
    }


def run(config, batches, devices=1):
    """States before the last of a few steps and after it, and the metrics of each."""
    return take_steps(contrastive_step, config, [{"pairs": rows} for rows in batches], devices)


def version_2(values):
    """Captioning alone, with a causal decoder that reads half of the tokens."""
    values = copy.deepcopy(values)
    values["model"]["text"] = None
    values["model"]["decoder"]["kind"] = "causal"
    values["captioning"]["keep_ratio"] = 0.5
    return values


def sigmoid(values):
    values = copy.deepcopy(values)
    values["model"]["loss"] = "sigmoid"
    return values


def contrast_only(values):
    values = copy.deepcopy(values)
    values["model"]["decoder"] = None
    return values


def test_both_losses_of_one_batch_fall_and_add_up(pair_values):
    config = ContrastiveConfig.from_dict({**pair_values, "total_steps": 40})
    _, state, history = run(config, [batch()] * 40)
    first, last = history[0], history[-1]
    assert last["pairs/contrastive"] < 0.5 * first["pairs/contrastive"]
    assert last["pairs/captioning"] < 0.8 * first["pairs/captioning"]
    assert last["pairs/accuracy"] > 0.9
    total = first["pairs/contrastive"] + 2 * first["pairs/captioning"]
    assert first["loss"] == pytest.approx(total, rel=1e-6)
    assert set(state["params"]) == {"encoder", "image_head", "text", "logit_scale", "decoder"}
    assert {leaf.dtype for leaf in jax.tree.leaves(state["params"])} == {np.dtype(np.float32)}
    # ln(vocabulary): nothing is known at first.
    assert first["pairs/captioning"] == pytest.approx(np.log(32), rel=0.35)


@pytest.mark.slow  # the losses are compared in tests/losses
@pytest.mark.parametrize("change", [lambda values: values, version_2, sigmoid])
def test_the_mesh_does_not_change_the_numbers(pair_values, change):
    config = ContrastiveConfig.from_dict({**change(pair_values), "total_steps": 3})
    batches = [batch(seed) for seed in range(2)]
    _, one, history_one = run(config, batches)
    several = dataclasses.replace(config, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    _, many, history_many = run(several, batches, devices=8)
    for a, b in zip(history_one, history_many, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm/encoder"], b["grad_norm/encoder"], rtol=1e-4)
    kernels = [tree["params"]["encoder"]["blocks"]["attn"]["qkv"]["kernel"] for tree in (one, many)]
    np.testing.assert_allclose(*kernels, atol=5e-5)


@pytest.mark.slow
def test_which_parts_are_trained(pair_values):
    config = ContrastiveConfig.from_dict(version_2(pair_values))
    assert config.parts == ("decoder",)
    before, after, history = run(config, [batch()])
    assert "pairs/contrastive" not in history[0]
    assert set(after["params"]) == {"encoder", "decoder"}
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before["params"], after["params"])
    assert moved["encoder"]["blocks"]["mlp"]["fc1"]["kernel"]
    config = ContrastiveConfig.from_dict(sigmoid(contrast_only(pair_values)))
    assert config.parts == ("image_head", "text", "logit_scale", "logit_bias")
    before, after, _ = run(config, [batch()])
    for part in config.parts:
        leaves = [jax.tree.leaves(state["params"][part]) for state in (before, after)]
        assert any(np.any(a != b) for a, b in zip(*leaves, strict=True)), part


def test_the_scale_stays_where_it_can_come_back_from(pair_values):
    values = contrast_only(pair_values)
    values["contrastive"] = {"max_scale": 14.5}  # it starts at 1 / 0.07 = 14.3
    values["optim"] = {**values["optim"], "lr": 0.1}
    _, state, history = run(ContrastiveConfig.from_dict(values), [batch()] * 4)
    assert state["params"]["logit_scale"]["value"] <= np.log(14.5) + 1e-6
    assert max(row["pairs/logit_scale"] for row in history) <= 14.5 + 1e-4


def test_an_unreadable_pair_counts_for_nothing(pair_values):
    config = ContrastiveConfig.from_dict({**pair_values, "total_steps": 40})
    masked = batch()
    masked["weight"][3] = 0
    changed = {key: value.copy() for key, value in masked.items()}
    changed["patches"][3] = 0
    changed["text_0"][3] = 6
    changed["target"][3] = 6
    (_, state, (a,)), (_, _, (b,)) = (run(config, [rows]) for rows in (masked, changed))
    assert state["bad_records"] == 1
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
    assert a["grad_norm/text"] == pytest.approx(b["grad_norm/text"], rel=1e-5)


def test_our_own_encoder_is_a_tower_too(pair_values):
    values = copy.deepcopy(pair_values)
    values["model"] |= {"tower": "codecvit"}
    values["model"]["vision"] |= {"num_heads": 1}
    config = ContrastiveConfig.from_dict({**values, "total_steps": 12})
    _, state, history = run(config, [batch()] * 12)
    assert history[-1]["loss"] < history[0]["loss"]
    assert "probe" in state["params"]["encoder"]["head"]  # its own attention pooling
    again = ContrastiveConfig.from_dict(config.to_dict())
    assert again == config


@pytest.mark.slow
def test_a_part_has_its_own_rate_and_can_be_frozen(pair_values):
    values = {**pair_values, "groups": {"text": {"lr_mult": 0.5}}}
    values["optim"] = {**values["optim"], "freeze": ("^encoder/",)}
    before, after, history = run(ContrastiveConfig.from_dict(values), [batch()])
    assert history[0]["lr/text"] == pytest.approx(0.5 * history[0]["lr/decoder"])
    jax.tree.map(
        np.testing.assert_array_equal, before["params"]["encoder"], after["params"]["encoder"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"vision": {"variant": "X/16"}}}, "X"),
        ({"groups": {"txt": {}}}, r"config.groups names 'txt'; this run trains image_head, text"),
        ({"init": {"checkpoint": "c", "parts": ("heads/main",)}}, "config.init.parts names"),
        ({"captioning": {"keep_ratio": 0.0}}, "config.captioning.keep_ratio = 0.0"),
        ({"sources": {}}, "config.sources is empty"),
        ({"tokeniser": "x"}, "did you mean 'tokenizer'"),
    ],
)
def test_a_wrong_field_is_named(pair_values, change, message):
    values = {**pair_values, **change}
    if "model" in change:
        values["model"] = {**pair_values["model"], **change["model"]}
    with pytest.raises(ValueError, match=message):
        ContrastiveConfig.from_dict(values)


def test_a_resolution_that_the_patch_does_not_divide_is_refused(pair_values):
    pair_values["sources"]["pairs"]["image_size"] = 30
    with pytest.raises(ValueError, match="must be a multiple of the patch 14: other pixels"):
        ContrastiveConfig.from_dict(pair_values)
