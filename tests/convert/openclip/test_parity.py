"""JAX and PyTorch compute the same of the same weights, images and texts."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from codecvit.convert.openclip.settings import Parts
from codecvit.models.clip import embed_image, embed_text, encode_image
from codecvit.models.openvision import IMAGE_MEAN, IMAGE_STD, OpenVisionConfig
from codecvit.models.text import TextConfig

TOKENS = 1e-4
FEATURES = 1e-5


def pixels(images):
    levels = torch.from_numpy(images).float() / 255
    return ((levels - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)).permute(0, 3, 1, 2)


def error(found, wanted):
    """Largest difference over the largest entry, of arrays of one shape."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape
    return np.abs(found - wanted).max() / np.abs(wanted).max()


def in_jax(parts, params, batch, ids):
    config = parts.clip()
    with jax.default_matmul_precision("highest"):
        out = encode_image(config, params, batch)
        images, _ = embed_image(config, params, batch)
        texts, tokens = embed_text(config, params, ids)
    return out["tokens"], out["pooled"], images, texts, tokens


def in_torch(model, images, ids):
    with torch.no_grad():
        return model(pixel_values=pixels(images), input_ids=torch.from_numpy(ids).long())


def texts(parts, number=3):
    rng = np.random.default_rng(5)
    shape = (number, parts.text.context_length)
    return rng.integers(0, parts.text.vocab_size, shape, dtype=np.int32)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ("Ti", (4, 4)),
        ("Ti", (5, 3)),
        ("S", (3, 5)),
        *(
            pytest.param(size, grid, marks=pytest.mark.slow)
            for size in ("B", "L", "So400m", "H", "g")
            for grid in ((4, 4), (5, 3))
        ),
    ],
)
def test_every_size_agrees(size, grid, make_weights, make_images, make_batch, clip_in_torch):
    shallow = {"depth": 2}
    parts = Parts(
        OpenVisionConfig.from_variant(f"{size}/8", **shallow),
        TextConfig.from_variant(size, vocab_size=50, context_length=9, **shallow),
    )
    params = make_weights(parts)
    images, ids = make_images(2, *grid, 8), texts(parts)
    tokens, pooled, image, text, _ = in_jax(parts, params, make_batch(images, 8), ids)
    out = in_torch(clip_in_torch(parts, params), images, ids)
    assert error(out.last_hidden_state, tokens) < TOKENS
    assert error(out.pooler_output, pooled) < FEATURES
    assert error(out.image_embeds, image) < FEATURES
    assert error(out.text_embeds, text) < FEATURES
    scale = np.exp(params["logit_scale"]["value"])
    assert error(out.logits_per_image, scale * image @ text.T) < FEATURES


def test_what_must_not_be_mixed_up_is_not(
    make_parts, make_weights, make_images, make_batch, clip_in_torch
):
    """Exchanged rows and columns, a lost class token and the other GELU are out of bounds."""
    parts = make_parts()
    params = make_weights(parts)
    images, ids = make_images(2, 5, 3, 8), texts(parts)
    model = clip_in_torch(parts, params)
    right = in_torch(model, images, ids)
    batch = make_batch(images, 8)
    swapped = {**batch, "positions": batch["positions"][..., [0, 2, 1]]}
    tokens, pooled, *_ = in_jax(parts, params, swapped, ids)
    assert error(right.last_hidden_state, tokens) > 100 * TOKENS
    assert error(right.pooler_output, pooled) > 100 * FEATURES
    shifted = {**batch, "positions": batch["positions"] + np.int32(1)}
    assert error(right.pooler_output, in_jax(parts, params, shifted, ids)[1]) > 100 * FEATURES
    with torch.no_grad():
        model.visual.class_embedding.zero_()
    assert error(in_torch(model, images, ids).pooler_output, right.pooler_output) > 100 * FEATURES
    model = clip_in_torch(parts, params)
    for block in (*model.transformer.resblocks, *model.visual.transformer.resblocks):
        block.mlp.approximate = "none"
    other = in_torch(model, images, ids)
    assert error(other.text_embeds, right.text_embeds) > 3 * FEATURES
    assert torch.equal(other.image_embeds, right.image_embeds)


def test_the_text_tower_looks_both_ways_and_reads_the_last_token(
    make_parts, make_weights, clip_in_torch
):
    parts = make_parts()
    model = clip_in_torch(parts, make_weights(parts))
    ids = torch.from_numpy(texts(parts, 1)).long()
    hidden = []
    model.transformer.register_forward_hook(lambda *args: hidden.append(args[-1].detach()))
    with torch.no_grad():
        first = model.get_text_features(ids)
        ids[0, -2] = (ids[0, -2] + 1) % parts.text.vocab_size
        second = model.get_text_features(ids)
    assert (hidden[0][0, 0] - hidden[1][0, 0]).abs().max() > 1e-3  # token 0 saw the change
    assert (first - second).abs().max() > 1e-3


def test_the_bias_of_the_sigmoid_loss_is_added(
    make_parts, make_weights, make_images, clip_in_torch
):
    parts = make_parts(bias=True)
    params = make_weights(parts)
    images, ids = make_images(2, 3, 3, 8), texts(parts)
    out = in_torch(clip_in_torch(parts, params), images, ids)
    cosines = out.image_embeds @ out.text_embeds.T
    wanted = np.exp(params["logit_scale"]["value"]) * cosines + params["logit_bias"]["value"]
    assert torch.allclose(out.logits_per_image, wanted, atol=1e-5)
    assert torch.equal(out.logits_per_text, out.logits_per_image.T)


def test_inputs_that_do_not_fit_are_named(make_parts, make_weights, clip_in_torch):
    parts = make_parts()
    model = clip_in_torch(parts, make_weights(parts))
    with pytest.raises(ValueError, match="multiples of the patch side 8"):
        model(pixel_values=torch.zeros(1, 3, 24, 20))
    with pytest.raises(ValueError, match=r"input_ids \[1, 5\] must be \[B, 12\]"):
        model(input_ids=torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="one of input_ids and pixel_values"):
        model()
    alone = dataclasses.replace(parts, text=None)
    encoder = {"encoder": make_weights(parts)["encoder"]}
    tower = clip_in_torch(alone, encoder)
    assert tower(pixel_values=torch.zeros(1, 3, 16, 16)).image_embeds is None
    with pytest.raises(ValueError, match="an image tower alone"):
        tower.get_image_features(torch.zeros(1, 3, 16, 16))
