"""Images of their native size, several in a row, come out as if each were alone."""

from __future__ import annotations

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codecvit.models import ViT, ViTConfig
from codecvit.models.splash import splash
from codecvit.sequence import PatchSequence, pack_rows

CONFIG = ViTConfig(width=64, depth=2, num_heads=1, mlp_dim=96, patch=4)
SHAPES = [(3, 4), (9, 7), (1, 5), (6, 6), (8, 12), (2, 2)]  # rows and columns of patches


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    made = []
    for rows, columns in SHAPES:
        h, w = (axis.ravel() for axis in np.mgrid[:rows, :columns])
        positions = np.stack([np.zeros_like(h), h, w], 1).astype(np.int32)
        patches = rng.integers(0, 256, (rows * columns, 4, 4, 3), np.uint8)
        made.append(PatchSequence(patches, positions))
    return made


@pytest.fixture(scope="module")
def params(images):
    packed = pack_rows(images, 128)
    init = jax.jit(ViT(CONFIG).init)
    params = init(jax.random.key(0), packed.patches, packed.positions)["params"]

    def moved(x):
        return np.asarray(x) + 0.02 * np.random.default_rng(1).normal(size=x.shape).astype("f4")

    return jax.tree.map(moved, params)


@pytest.fixture(params=["xla", "splash"])
def impl(request, monkeypatch):
    if request.param == "splash":
        interpreted = functools.partial(splash, interpret=True)
        attention = importlib.import_module("codecvit.models.attention")
        monkeypatch.setitem(attention.IMPLEMENTATIONS, "splash", interpreted)
    return request.param


def config(impl):
    return ViTConfig(**{**vars(CONFIG), "attention_impl": impl})


def run_packed(params, images, impl, budget=128):
    packed = pack_rows(images, budget)
    segments = int(packed.segment_ids.max()) + 1

    @jax.jit
    def run(params):
        return ViT(config(impl)).apply(
            {"params": params},
            packed.patches,
            packed.positions,
            segment_ids_BL=packed.segment_ids,
            num_segments=segments,
        )

    return packed, run(params)


@jax.jit
def run_alone(params, rows):
    return ViT(CONFIG).apply({"params": params}, *rows)


def rows_of(images):
    """One image per row, padded."""
    longest = max(map(len, images))
    patches = np.zeros((len(images), longest, 48), np.uint8)
    positions = np.zeros((len(images), longest, 3), np.int32)
    for row, image in enumerate(images):
        patches[row, : len(image)] = image.flat()
        positions[row, : len(image)] = image.positions
    return patches, positions, np.array([len(image) for image in images], np.int32)


def test_each_image_is_as_if_alone(params, images, impl):
    packed, out = run_packed(params, images, impl)
    assert len(packed.patches) < len(images)
    alone = run_alone(params, rows_of(images))
    for i, (row, segment) in enumerate(packed.places):
        tokens = out["tokens"][row][packed.segment_ids[row] == segment]
        np.testing.assert_allclose(tokens, alone["tokens"][i, : len(images[i])], atol=2e-5)
        np.testing.assert_allclose(out["pooled"][row, segment], alone["pooled"][i], atol=2e-5)
    there = np.zeros(out["pooled"].shape[:2], bool)
    there[tuple(packed.places.T)] = True
    assert not out["pooled"][~there].any()
    assert not out["tokens"][packed.segment_ids < 0].any()


def test_gradients_are_those_of_the_images_alone(params, images, impl):
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(len(images), 64)))

    def packed_loss(params):
        packed, out = run_packed(params, images, impl)
        return (out["pooled"][tuple(packed.places.T)] * weights).sum()

    def alone_loss(params):
        return (run_alone(params, rows_of(images))["pooled"] * weights).sum()

    one, other = (jax.jit(jax.grad(loss))(params) for loss in (packed_loss, alone_loss))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(b).max())),
        one,
        other,
    )


def test_rows_are_filled_longest_first(images):
    packed = pack_rows(images, 128)
    lengths = (packed.segment_ids >= 0).sum(1)
    # 96, 63, 36, 12, 5, 4 patches: 96 + 12 + 5 + 4 and 63 + 36.
    assert lengths.tolist() == [117, 99]
    assert packed.places.tolist() == [[0, 1], [1, 0], [0, 2], [1, 1], [0, 0], [0, 3]]
    for image, (row, segment) in zip(images, packed.places, strict=True):
        here = packed.segment_ids[row] == segment
        np.testing.assert_array_equal(packed.patches[row][here], image.flat())
        np.testing.assert_array_equal(packed.positions[row][here], image.positions)


def test_what_cannot_be_packed_is_named(params, images):
    with pytest.raises(ValueError, match="budget = 64 is below the longest sequence, 96 patches"):
        pack_rows(images, 64)
    with pytest.raises(ValueError, match="no sequences"):
        pack_rows([], 64)
    other = PatchSequence(np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 3), np.int32))
    with pytest.raises(ValueError, match=r"one patch size, got \[2, 4\]"):
        pack_rows([images[0], other], 64)
    packed = pack_rows(images, 128)
    row = {"params": params}, packed.patches, packed.positions
    with pytest.raises(ValueError, match="need num_segments >= 1, got 0"):
        ViT(CONFIG).apply(*row, segment_ids_BL=packed.segment_ids)
    with pytest.raises(ValueError, match="takes no segment ids"):
        ids = {"segment_ids_BL": packed.segment_ids, "num_segments": 4}
        ViT(config("cudnn")).apply(*row, **ids)
