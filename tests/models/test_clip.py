"""Image-text models: published sizes, embeddings, both kinds of tower, execution, meshes."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from random_params import assert_trees_close, randomise

from codecvit.models import clip
from codecvit.models.captioning import CaptionConfig
from codecvit.models.clip import ClipConfig
from codecvit.models.config import ViTConfig
from codecvit.models.openvision import OpenVisionConfig
from codecvit.models.text import EMBED_DIMS, SIZES, TextConfig

VISION = OpenVisionConfig(width=32, depth=2, num_heads=2, mlp_dim=48, patch=4)
OWN = ViTConfig(width=32, depth=2, num_heads=1, mlp_dim=48, patch=4)
TEXT = TextConfig(
    width=24, depth=2, num_heads=2, mlp_dim=32, vocab_size=40, context_length=6, embed_dim=16
)
BLOCKS = {"width": 24, "depth": 2, "num_heads": 2, "mlp_dim": 32, "vocab_size": 40}
QUERIES = CaptionConfig(kind="queries", output_length=5, image_width=32, text_width=24, **BLOCKS)
CAUSAL = CaptionConfig(kind="causal", output_length=5, image_width=32, **BLOCKS)
V1 = ClipConfig(vision=VISION, text=TEXT, decoder=QUERIES, embed_dim=16)
V2 = ClipConfig(vision=VISION, decoder=CAUSAL)
B, L = 4, 9


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "patches": rng.integers(0, 256, (B, L, 48), dtype=np.uint8),
        "positions": rng.integers(0, 8, (B, L, 3)).astype(np.int32),
        "length": np.array([L, 4, 1, L], np.int32),
        "text": rng.integers(0, 40, (B, 6)).astype(np.int32),
        "target": rng.integers(0, 40, (B, 5)).astype(np.int32),
    }


@functools.cache
def params(config):
    return randomise(jax.eval_shape(functools.partial(clip.init, config), jax.random.key(0)))


# Millions: vision with its image head, text tower, decoder. A count of OpenVision's own H gives
# 631.8 for vision; the dimensions of its table make 631.745.
PUBLISHED = {
    "Ti/16": (5.5, 11.5, 11.6),
    "S/16": (21.7, 33.8, 33.9),
    "B/16": (86.0, 54.5, 54.9),
    "L/14": (303.7, 110.3, 111.1),
    "So400m/14": (413.5, 449.8, 451.1),
    "H/14": (631.7, 336.2, 337.6),
    "g/14": (1012.3, 672.1, 338.0),
}
# Counted by hand: blocks of 4 D^2 + 2 D F + 9 D + F, patches P*P*3*D, class token, norm, head.
EXACT = {"Ti/16": 5_523_264, "L/14": 303_700_992, "H/14": 631_745_280, "g/14": 1_012_280_960}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_sizes(variant):
    size = variant.split("/")[0]
    text = TextConfig.from_variant(size)
    config = ClipConfig(
        vision=OpenVisionConfig.from_variant(variant),
        text=text,
        decoder=CaptionConfig.from_variant(size, kind="queries"),
        embed_dim=EMBED_DIMS[size],
    )
    shapes = jax.eval_shape(functools.partial(clip.init, config), jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}

    def count(*names):
        return sum(x.size for name in names for x in jax.tree.leaves(shapes[name]))

    counts = count("encoder", "image_head"), count("text"), count("decoder")
    assert tuple(round(n / 1e6, 1) for n in counts) == PUBLISHED[variant]
    assert counts[0] == EXACT.get(variant, counts[0])


def test_every_published_size_is_there():
    assert [variant.split("/")[0] for variant in PUBLISHED] == list(SIZES) == list(EMBED_DIMS)


def test_tree_is_the_documented_one():
    v1 = jax.eval_shape(functools.partial(clip.init, V1), jax.random.key(0))
    assert set(v1) == {"encoder", "image_head", "text", "decoder", "logit_scale"}
    assert v1["image_head"]["kernel"].shape == (32, 16)
    assert v1["logit_scale"]["value"].shape == ()
    v2 = jax.eval_shape(functools.partial(clip.init, V2), jax.random.key(0))
    assert set(v2) == {"encoder", "decoder"}
    sigmoid = dataclasses.replace(V1, decoder=None, loss="sigmoid")
    tree = jax.eval_shape(functools.partial(clip.init, sigmoid), jax.random.key(0))
    assert set(tree) == {"encoder", "image_head", "text", "logit_scale", "logit_bias"}


def test_parts_start_the_same_beside_any_others():
    both, alone = (
        jax.jit(functools.partial(clip.init, config))(jax.random.key(2))
        for config in (V1, dataclasses.replace(V1, decoder=None, loss="sigmoid"))
    )
    for name in ("encoder", "image_head", "text"):
        # Two programs, so the last bit may differ.
        assert_trees_close(both[name], alone[name], 1e-6)
    assert both["logit_scale"]["value"] == pytest.approx(math.log(1 / 0.07))
    assert alone["logit_scale"]["value"] == pytest.approx(math.log(10))
    assert alone["logit_bias"]["value"] == -10
    assert np.std(both["image_head"]["kernel"]) == pytest.approx(0.02, rel=0.1)
    # The towers draw numbers of their own.
    kernels = [both[part]["blocks"]["mlp"]["fc1"]["kernel"] for part in ("text", "decoder")]
    assert kernels[0].shape == kernels[1].shape and (kernels[0] != kernels[1]).all()


def run(config, params, batch):
    """Everything that a step of the two-caption trainer calls."""
    image_BE, tokens_BLD = clip.embed_image(config, params, batch)
    text_BE, text_tokens_BTD = clip.embed_text(config, params, batch["text"])
    hidden = clip.caption(config, params, tokens_BLD, text_tokens_BTD, batch["length"])
    return image_BE, text_BE, hidden


@pytest.mark.parametrize(
    ("vision", "dtype"), [(VISION, "bfloat16"), (OWN, "float32")], ids=["openvision", "own"]
)
def test_either_tower_embeds_on_the_sphere(vision, dtype):
    config = ClipConfig(
        vision=dataclasses.replace(vision, dtype=dtype),
        text=dataclasses.replace(TEXT, dtype=dtype),
        decoder=dataclasses.replace(QUERIES, dtype=dtype),
        embed_dim=16,
    )
    out = jax.jit(functools.partial(run, config))(params(config), batch())
    for unit in out[:2]:
        assert unit.dtype == jnp.float32 and unit.shape == (B, 16)
        np.testing.assert_allclose(jnp.linalg.norm(unit, axis=-1), 1, atol=1e-6)
    assert out[2].dtype == dtype and out[2].shape == (B, 5, 24)
    if dtype == "bfloat16":
        want = jax.jit(functools.partial(run, V1))(params(config), batch())
        for low, high in zip(out[:2], want[:2], strict=True):
            assert (low * high).sum(-1).min() > 0.998


def test_embedding_is_head_of_pooled():
    out = clip.encode_image(V1, params(V1), batch())
    unit_BE, tokens_BLD = clip.embed_image(V1, params(V1), batch())
    want = np.asarray(out["pooled"], np.float64) @ params(V1)["image_head"]["kernel"]
    np.testing.assert_allclose(
        unit_BE, want / np.linalg.norm(want, axis=-1, keepdims=True), atol=1e-5
    )
    np.testing.assert_array_equal(tokens_BLD, out["tokens"])


def test_a_zero_embedding_has_a_finite_gradient():
    zero = {**params(V1), "image_head": {"kernel": jnp.zeros((32, 16))}}
    grads = jax.jit(jax.grad(lambda p: clip.embed_image(V1, p, batch())[0].sum()))(zero)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def loss(config, params, batch):
    image_BE, text_BE, hidden = run(config, params, batch)
    weights = np.random.default_rng(5).normal(size=hidden.shape)
    return (image_BE @ text_BE.T).mean() + (hidden * weights).mean()


def value_and_grad(config, params, batch):
    return jax.jit(jax.value_and_grad(functools.partial(loss, config)))(params, batch)


@pytest.fixture(scope="module")
def plain():
    return value_and_grad(V1, params(V1), batch())


@pytest.mark.parametrize("changes", [{"scan": False}, {"remat": "full"}])
def test_execution_changes_no_number(plain, changes):
    parts = ("vision", "text", "decoder")
    changed = {part: dataclasses.replace(getattr(V1, part), **changes) for part in parts}
    config = dataclasses.replace(V1, **changed)
    assert_trees_close(value_and_grad(config, params(V1), batch()), plain, 1e-4)


def test_sharded_parameters_and_rows_give_the_same_numbers(plain):
    mesh = jax.make_mesh(
        (2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4]
    )

    def place(x):
        spec = [None] * (x.ndim - 1) + ["fsdp"] if x.ndim and x.shape[-1] % 2 == 0 else []
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        data = jax.device_put(batch(), rows)
        got = jax.jit(functools.partial(loss, V1))(jax.tree.map(place, params(V1)), data)
    np.testing.assert_allclose(got, plain[0], atol=1e-5)


def test_a_model_without_text_only_writes_captions():
    out = clip.encode_image(V2, params(V2), batch())
    hidden = clip.caption(V2, params(V2), out["tokens"], batch()["target"], batch()["length"])
    assert hidden.shape == (B, 5, 24)
    with pytest.raises(ValueError, match="without a text tower there is no embedding"):
        clip.embed_image(V2, params(V2), batch())
    with pytest.raises(ValueError, match="without a text tower there is no embedding"):
        clip.embed_text(V2, params(V2), batch()["text"])
    with pytest.raises(ValueError, match="this model writes no captions"):
        clip.caption(dataclasses.replace(V1, decoder=None), {}, out["tokens"], None)


def test_our_vit_is_no_g_and_no_so400m():
    for wrong in ("g/14", "So400m/14"):
        with pytest.raises(ValueError, match="one of Ti, S, B, L, H"):
            ViTConfig.from_variant(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "triplet"}, "softmax, sigmoid"),
        ({"text": None, "decoder": None, "embed_dim": None}, "nothing to train"),
        ({"embed_dim": 8}, "embed_dim = 8 must be the text tower's, 16"),
        ({"text": None, "decoder": CAUSAL}, "embed_dim = 16 must be the text tower's, None"),
        ({"text": None, "embed_dim": None}, "'queries' reads a text tower's tokens"),
        (
            {"decoder": dataclasses.replace(QUERIES, image_width=8)},
            "image_width = 8 .* vision .*32",
        ),
        ({"decoder": dataclasses.replace(QUERIES, text_width=8)}, "text_width = 8 .* text .*24"),
    ],
)
def test_parts_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(V1, **changes)
