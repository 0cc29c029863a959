"""The stock OpenCLIP opens what `--format openclip` writes. Runs where open_clip is installed."""

import numpy as np
import pytest
import torch
from PIL import Image

from codecvit.convert.openclip.settings import ClipOrigin, Parts
from codecvit.convert.openclip.write import export_clip
from codecvit.data.tokenizers import open_tokenizer
from codecvit.models.openvision import OpenVisionConfig
from codecvit.models.text import TextConfig

open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")

SIZE = 32


@pytest.mark.parametrize("bias", [False, True])
def test_open_clip_computes_the_same(
    make_parts, make_weights, clip_in_torch, vocabulary, tmp_path, bias
):
    parts = make_parts(decoder="queries", bias=bias)
    params = make_weights(parts)
    origin, tokenizer = ClipOrigin(image_size=SIZE), open_tokenizer(vocabulary)
    out = export_clip(
        params, parts, tmp_path / "out", layout="openclip", origin=origin, tokenizer=tokenizer
    )
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{out}")
    theirs = open_clip.get_tokenizer(f"local-dir:{out}")
    texts = ["a photo of a dog.", "the red cats' tree " * 9, ""]
    ids = theirs(texts)
    np.testing.assert_array_equal(ids, np.stack([tokenizer.encode(t, 12) for t in texts]))
    levels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    pixels = preprocess(Image.fromarray(levels).resize((90, 60)))[None]
    assert pixels.shape == (1, 3, SIZE, SIZE)
    ours = clip_in_torch(parts, params)
    with torch.no_grad():
        image = model.eval().encode_image(pixels)
        text = model.encode_text(ids)
        assert torch.allclose(image, ours.get_image_features(pixels), rtol=1e-5, atol=1e-5)
        assert torch.allclose(text, ours.get_text_features(ids), rtol=1e-5, atol=1e-5)
    assert model.logit_scale.item() == params["logit_scale"]["value"]
    if bias:
        assert model.logit_bias.item() == params["logit_bias"]["value"]


def test_so400m_has_the_width_that_its_ratio_rounds_to(make_weights, vocabulary, tmp_path):
    parts = Parts(
        OpenVisionConfig.from_variant("So400m/14", depth=1),
        TextConfig.from_variant("So400m", depth=1, vocab_size=64, context_length=8),
    )
    out = export_clip(
        make_weights(parts),
        parts,
        tmp_path / "out",
        layout="openclip",
        origin=ClipOrigin(image_size=28),
        tokenizer=open_tokenizer(vocabulary),
    )
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{out}")
    assert model.visual.transformer.resblocks[0].mlp.c_fc.out_features == 4304
