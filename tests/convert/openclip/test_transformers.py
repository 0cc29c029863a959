"""The folder for AutoModel: opens, computes, and saves again; its image processor is ours."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from codecvit.convert import hf
from codecvit.convert.hf.configuration_openvision_clip import MODELING_VERSION
from codecvit.convert.image_text import prepare
from codecvit.convert.openclip.read import read_clip
from codecvit.convert.openclip.settings import ClipOrigin
from codecvit.convert.openclip.write import export_clip
from codecvit.data.tokenizers import open_tokenizer
from codecvit.models.openvision import IMAGE_MEAN, IMAGE_STD

from .helpers import same_trees

SIZE = 32


@pytest.fixture(scope="module")
def parts(make_parts):
    return make_parts(bias=True)


@pytest.fixture(scope="module")
def params(make_weights, parts):
    return make_weights(parts)


@pytest.fixture(scope="module")
def folder(parts, params, vocabulary, tmp_path_factory):
    out = tmp_path_factory.mktemp("transformers") / "image_text"
    origin, tokenizer = ClipOrigin(image_size=SIZE), open_tokenizer(vocabulary)
    return export_clip(params, parts, out, origin=origin, tokenizer=tokenizer, shard_size="40KB")


def test_the_version_fits_the_modelling_file():
    modelling = Path(hf.__file__).with_name("modeling_openvision_clip.py").read_bytes()
    assert hashlib.sha256(modelling).hexdigest()[:12] == MODELING_VERSION


def test_auto_model_computes_the_same(folder, parts, params, clip_in_torch, make_images):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    pixels = torch.randn(2, 3, SIZE, 24)
    ids = torch.randint(0, 60, (3, 12))
    direct = clip_in_torch(parts, params)
    with torch.no_grad():
        assert torch.equal(model.get_image_features(pixels), direct.get_image_features(pixels))
        assert torch.equal(model.get_text_features(ids), direct.get_text_features(ids))
        out = model(pixel_values=pixels, input_ids=ids)
    features = torch.nn.functional.normalize(direct.get_image_features(pixels), dim=-1)
    assert torch.allclose(out.image_embeds, features)


def test_saved_again_it_is_the_same(folder, params, tmp_path):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(tmp_path / "again")
    for name in ("preprocessor_config.json", "vocab.txt"):
        (tmp_path / "again" / name).write_bytes((folder / name).read_bytes())
    same_trees(read_clip(tmp_path / "again").params, params)
    reopened = AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True)
    same = zip(reopened.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_it_trains(folder):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    ids, pixels = torch.randint(0, 60, (2, 12)), torch.randn(2, 3, SIZE, SIZE)
    model(pixel_values=pixels, input_ids=ids).logits_per_image.diag().sum().backward()
    lacking = [name for name, p in model.named_parameters() if p.grad is None]
    assert lacking == []


def test_half_precision(folder):
    single = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    half = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16).eval()
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        wanted, found = single.get_image_features(pixels), half.get_image_features(pixels)
    assert found.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(wanted, found.float()).min() > 0.99


def test_texts_and_images_are_prepared_as_ours(folder, vocabulary):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    texts = ["a photo of a dog.", "the red cats' tree " * 9, ""]
    wanted = np.stack([open_tokenizer(vocabulary).encode(text, 12) for text in texts])
    np.testing.assert_array_equal(model.prepare_texts(tokenizer, texts), wanted)
    levels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    picture = Image.fromarray(levels).resize((90, 60), Image.Resampling.BICUBIC)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    found = processor(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    levels = prepare(picture, ClipOrigin(image_size=SIZE))
    np.testing.assert_allclose(found, (levels / 255 - IMAGE_MEAN) / IMAGE_STD, rtol=1e-5, atol=1e-5)
