"""Caption decoders: parity with float64 numpy, who influences whom, dropped image tokens."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import traverse_util
from random_params import assert_close_in_direction, exact, random_params

from codecvit.models.captioning import SIZES, CaptionConfig, CaptionDecoder, keep_tokens

COMMON = {
    "width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 48, "vocab_size": 40, "output_length": 5,
    "image_width": 24,
}  # fmt: skip
QUERIES = CaptionConfig(kind="queries", text_width=16, **COMMON)
CAUSAL = CaptionConfig(kind="causal", **COMMON)
B, L, T, OUT = 2, 6, 4, 5
LENGTHS = np.array([L, 2], np.int32)


def inputs(kind, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(B, L, 24)).astype(np.float32)
    if kind == "queries":
        return image, rng.normal(size=(B, T, 16)).astype(np.float32)
    return image, rng.integers(0, 40, (B, OUT)).astype(np.int32)


def config(kind):
    return QUERIES if kind == "queries" else CAUSAL


@functools.cache
def params(kind):
    return random_params(CaptionDecoder(config(kind)), *inputs(kind))


def forward(kind, params, *inputs, **changes):
    decoder = CaptionDecoder(dataclasses.replace(config(kind), **changes))
    return jax.jit(lambda p, *a: decoder.apply({"params": p}, *a))(params, *inputs)


@pytest.mark.parametrize("kind", ["queries", "causal"])
def test_equals_the_float64_reference(kind):
    image, context = inputs(kind)
    out = forward(kind, params(kind), image, context, LENGTHS)
    for row, n in enumerate(LENGTHS):
        want = reference.captions(exact(params(kind)), image[row, :n], context[row], heads=2)
        np.testing.assert_allclose(out[row], want, atol=2e-5)


@pytest.mark.parametrize("kind", ["queries", "causal"])
def test_padding_of_the_image_has_no_influence(kind):
    image, context = inputs(kind)
    padded = np.concatenate([image, np.full((B, 3, 24), 1e3, np.float32)], axis=1)
    padded[1, 2:L] = -1e3
    lengths = np.array([L, 2], np.int32)
    want = forward(kind, params(kind), image, context, lengths)
    np.testing.assert_allclose(
        forward(kind, params(kind), padded, context, lengths), want, atol=1e-5
    )
    full = forward(kind, params(kind), image[:1], context[:1])  # no lengths: every row is full
    np.testing.assert_allclose(full[0], want[0], atol=1e-5)
    empty = forward(kind, params(kind), image, context, np.array([L, 0], np.int32))
    assert np.isfinite(empty).all()


def influence(row=1):
    """Gradient norms of each output of a row by image token, text token and query."""
    image, context = inputs("queries")
    queries = params("queries")["queries"]

    def outputs(image, context, queries):
        variables = {"params": {**params("queries"), "queries": queries}}
        # Of random weights: a plain sum of a layer norm's output has a gradient of zero.
        weights = np.random.default_rng(3).normal(size=32)
        return CaptionDecoder(QUERIES).apply(variables, image, context, LENGTHS)[row] @ weights

    slopes = jax.jit(jax.jacrev(outputs, argnums=(0, 1, 2)))(image, context, queries)
    return [np.linalg.norm(x, axis=-1) for x in slopes]


def test_queries_see_the_prefix_and_the_queries_before():
    """By gradients, two layers deep: a prefix that saw queries would hand them on."""
    image_OBL, text_OBT, queries_OO = influence()
    assert (image_OBL[:, 1, :2] > 1e-4).all()
    assert (image_OBL[:, 1, 2:] == 0).all() and (image_OBL[:, 0] == 0).all()  # padding; other row
    assert (text_OBT[:, 1, : T - 1] > 1e-4).all()
    assert (text_OBT[:, 1, T - 1] == 0).all() and (text_OBT[:, 0] == 0).all()  # [CLS]; other row
    seen = np.tri(OUT, dtype=bool)
    assert (queries_OO[seen] > 1e-4).all() and (queries_OO[~seen] == 0).all()


@pytest.mark.parametrize("kind", ["queries", "causal"])
def test_image_tokens_are_interchangeable(kind):
    """The prefix is bidirectional and has no order of its own: in a causal one, what the first
    token holds would go further than what the last one does.
    """
    image, context = inputs(kind)
    turned = forward(kind, params(kind), image[:, ::-1], context)
    np.testing.assert_allclose(turned, forward(kind, params(kind), image, context), atol=1e-5)


def test_teacher_forcing_never_shows_the_target():
    """Id i changes every output after i and none up to i; the last id changes none."""
    image, ids = inputs("causal")
    before = forward("causal", params("causal"), image, ids)
    for i in range(OUT):
        other = ids.copy()
        other[:, i] = (other[:, i] + 1) % 40
        moved = np.abs(forward("causal", params("causal"), image, other) - before).max(-1)
        assert (moved[:, : i + 1] == 0).all() and (moved[:, i + 1 :] > 1e-4).all()
    assert (
        np.abs(forward("causal", params("causal"), image[::-1], ids) - before).max(-1) > 0
    ).all()


def test_shorter_captions_are_the_beginning_of_longer_ones():
    image, ids = inputs("causal")
    short = forward("causal", params("causal"), image, ids[:, :2])
    long = forward("causal", params("causal"), image, ids)
    np.testing.assert_allclose(short, long[:, :2], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "own"),
    [("queries", {"queries": (5, 32), "text_proj/kernel": (16, 32)}),
     ("causal", {"start": (32,), "token_embed/embedding": (40, 32)})],
)  # fmt: skip
def test_tree_is_the_documented_one(kind, own):
    flat = traverse_util.flatten_dict(params(kind), sep="/")
    shapes = {k: v.shape for k, v in flat.items() if not k.startswith("blocks/")}
    assert shapes == {
        "image_proj/kernel": (24, 32),
        "head/kernel": (32, 40),
        "layernorm_post/scale": (32,),
        "layernorm_post/bias": (32,),
        **own,
    }


def test_bfloat16_is_close():
    data = inputs("queries")
    low = forward("queries", params("queries"), *data, LENGTHS, dtype="bfloat16")
    assert low.dtype == jnp.bfloat16
    assert_close_in_direction(low, forward("queries", params("queries"), *data, LENGTHS))


def test_wrong_values_are_named():
    for wrong in ("XL", "L/14"):
        with pytest.raises(ValueError, match=f"choose one of {', '.join(SIZES)}"):
            CaptionConfig.from_variant(wrong, kind="causal")
    with pytest.raises(ValueError, match=r"kind = 'cross' is unknown.*queries, causal"):
        CaptionConfig.from_variant("L", kind="cross")
    with pytest.raises(ValueError, match="'causal' reads no text tower, leave it None"):
        CaptionConfig.from_variant("L", kind="causal", text_width=768)
    with pytest.raises(ValueError, match="give their width"):
        CaptionConfig.from_variant("L", kind="queries", text_width=None)
    image, ids = inputs("causal")
    with pytest.raises(ValueError, match=r"6 ids, more than the decoder's output_length = 5"):
        forward("causal", params("causal"), image, np.zeros((B, 6), np.int32))
    with pytest.raises(ValueError, match=r"image tokens have width 16.*image_width = 24"):
        forward("causal", params("causal"), image[..., :16], ids)
    with pytest.raises(ValueError, match=r"text tokens have width 15.*text_width = 16"):
        forward("queries", params("queries"), image, np.zeros((B, T, 15), np.float32))


# Dropped image tokens.

ROWS, TOKENS = 6, 100
INDEX = np.arange(ROWS) + 40
# Each token holds its row and its place, from 1 on.
MARKED = np.stack(np.mgrid[:ROWS, :TOKENS], axis=-1).astype(np.float32) + 1


def keep(ratio, lengths=None, seed=0, rows=slice(None)):
    run = jax.jit(functools.partial(keep_tokens, keep_ratio=ratio))
    lengths = None if lengths is None else lengths[rows]
    kept, left = run(
        MARKED[rows], lengths, key=jax.random.key(seed), index_B=INDEX[rows].astype(np.int32)
    )
    return np.asarray(kept), None if left is None else np.asarray(left)


@pytest.mark.parametrize("ratio", [0.07, 0.35, 0.999])
def test_dropping_keeps_a_share_of_the_valid_tokens(ratio):
    lengths = np.array([TOKENS, 0, 1, 3, 50, 99], np.int32)
    kept, left = keep(ratio, lengths)
    # In whole thousandths: ratio * n in floating point may lie just above a whole number.
    thousandths = round(ratio * 1000)
    want = [-(-thousandths * n // 1000) for n in lengths]
    assert kept.shape == (ROWS, math.ceil(thousandths * TOKENS / 1000), 2)
    np.testing.assert_array_equal(left, want)
    for row, (n, count) in enumerate(zip(lengths, want, strict=True)):
        places = kept[row, :count, 1]
        assert (kept[row, :count, 0] == row + 1).all()
        assert (np.diff(places) > 0).all() and (places <= n).all()  # in order, none twice, valid
        assert not kept[row, count:].any()


def test_dropping_draws_by_key_and_example():
    kept, left = keep(0.35)
    assert left is None and kept.shape == (ROWS, 35, 2)
    chosen = {tuple(row[:, 1]) for row in kept}
    assert len(chosen) == ROWS  # rows differ
    np.testing.assert_array_equal(keep(0.35)[0], kept)
    assert (keep(0.35, seed=1)[0] != kept).any((1, 2)).all()
    # An example's draw is the same wherever its row lies.
    rows = [4, 1]
    np.testing.assert_array_equal(keep(0.35, rows=rows)[0], kept[rows])


def test_dropping_is_uniform():
    """Over keys, each of 10 places is kept equally often: 3 of 10, five deviations wide."""
    tokens = np.arange(1, 11, dtype=np.float32)[None, :, None]
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.jit(jax.vmap(lambda k: keep_tokens(tokens, None, 0.3, k, jnp.zeros(1, int))[0]))
    counts = np.bincount(np.asarray(draw(keys)).astype(int).ravel(), minlength=11)[1:]
    assert counts.sum() == 6000 and np.abs(counts - 600).max() < 5 * (2000 * 0.3 * 0.7) ** 0.5


def test_dropping_sends_gradients_to_what_it_keeps():
    key, index = jax.random.key(0), INDEX.astype(np.int32)

    def loss(tokens):
        return keep_tokens(tokens, None, 0.2, key, index)[0].sum()

    slopes = jax.jit(jax.grad(loss))(MARKED)[..., 0]
    assert set(np.unique(slopes)) == {0, 1} and (slopes.sum(1) == 20).all()


def test_ratio_one_keeps_all_in_place():
    lengths = np.arange(ROWS, dtype=np.int32)
    kept, left = keep(1, lengths)
    np.testing.assert_array_equal(kept, MARKED)
    np.testing.assert_array_equal(left, lengths)
    for wrong in (0, 1.2):
        with pytest.raises(ValueError, match=f"keep_ratio = {wrong} must lie in"):
            keep(wrong)
