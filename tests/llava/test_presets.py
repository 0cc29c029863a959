"""Published recipes as presets: their numbers and their tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    Dinov2WithRegistersConfig,
    SiglipVisionConfig,
    VivitConfig,
)

from codecvit.configs.llava import get_config
from codecvit.configs.llava_presets import PRESETS
from codecvit.llava import LlavaConfig
from codecvit.llava.encoders.internvideo2 import InternVideo2Config
from codecvit.llava.encoders.languagebind import LanguageBindVideoConfig
from codecvit.llava.model.fused_projector import FusedProjector
from codecvit.llava.model.parts import parse_source
from codecvit.llava.model.token_counts import num_visual_tokens
from codecvit.llava.training.config import parse_config

from .conftest import language_config

MERV = ["merv-frozen", "merv-full", "languagebind-single", "dinov2-single", "vivit-single"]
MERV += ["siglip-single"]
LARGE = {"hidden_size": 1024, "num_attention_heads": 16}
# As published; of the towers only what decides tokens and projectors.
TOWERS = {
    "languagebind": LanguageBindVideoConfig(),
    "dinov2": Dinov2WithRegistersConfig(**LARGE, image_size=518, patch_size=14),
    "vivit": VivitConfig(),
    "siglip": SiglipVisionConfig(),
    "image": CLIPVisionConfig(**LARGE, image_size=336, patch_size=14),
    "video": InternVideo2Config(),
}


def config_at(arg):
    return parse_config(get_config(f"{arg},data=rows.json").to_dict())


def model_config(run, width=32):
    """The model's configuration, of towers with the published sizes; `width` of its LM."""
    entries = []
    for source in run.model.encoders:
        fields = parse_source(source)
        del fields["folder"]
        name = fields["name"]
        entries.append({**fields, "config": TOWERS[name], "resize": run.model.resize})
    options = {"template": "phi3", **run.model.options()}
    return LlavaConfig(encoders=entries, text_config=language_config(hidden_size=width), **options)


def tokens(config, frames):
    none = np.zeros((0, 3), np.int64)
    return num_visual_tokens(config, none, (0, 0), frames)


@pytest.mark.parametrize("name", [n for n in MERV if n != "merv-full"])
def test_the_one_stage_of_merv(name):
    config = config_at(f"preset={name}")
    assert config.optim.rates() == {"vision_tower": 0, "projector": 2e-5, "language_model": 2e-5}
    assert (config.batch_size, config.micro_batch_size, config.epochs) == (128, 8, 1.0)
    optim = config.optim
    assert (optim.weight_decay, optim.schedule, optim.warmup, optim.clip_norm) == (
        *(0.1, "cosine", 0.03, 1.0),
    )
    assert (config.model.template, config.model.splice) == ("pure", "after_bos")
    names = [parse_source(source)["name"] for source in config.model.encoders]
    assert names == (
        ["languagebind", "dinov2", "vivit", "siglip"]
        if name == "merv-frozen"
        else [name.removesuffix("-single")]
    )


def test_the_two_stages_of_merv_full():
    first = config_at("preset=merv-full")
    assert first.optim.rates() == {"vision_tower": 0, "projector": 1e-4, "language_model": 1e-4}
    assert (first.batch_size, first.micro_batch_size, first.optim.weight_decay) == (256, 16, 0)
    assert (first.model.template, first.optim.schedule) == ("plain", "cosine")
    second = config_at("preset=merv-full,stage=sft,init=runs/x")
    assert (second.optim, second.batch_size) == (config_at("preset=merv-frozen").optim, 128)
    assert (second.init, second.model.encoders, second.model.template) == ("runs/x", (), "pure")


def test_the_stages_of_videogpt_plus():
    for name in ("image", "video"):
        config = config_at(f"preset=videogpt-plus-{name},towers={name}=f.pt")
        assert config.optim.rates() == {"vision_tower": 0, "projector": 1e-3, "language_model": 0}
        assert (config.batch_size, config.micro_batch_size) == (256, 16)
        assert (config.model.template, config.data.max_length) == ("plain", 4096)
    config = config_at("preset=videogpt-plus,towers=video=f.pt")
    assert config.optim.rates() == {"vision_tower": 0, "projector": 2e-5, "language_model": 2e-4}
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (128, 256.0, 0.05)
    assert (config.batch_size, config.micro_batch_size, config.optim.weight_decay) == (128, 8, 0)
    assert (config.model.fusion, config.model.pool_first) == ("dual_stream", False)


# Tokens


@pytest.mark.parametrize("name", MERV)
def test_tokens_of_merv(name):
    config = model_config(config_at(f"preset={name}"))
    frames = 32 if "vivit" in config.encoder_names else 16
    assert config.frame_rule.count == frames
    assert (tokens(config, frames), tokens(config, 1)) == (1024, 64)
    sizes = {entry.name: (entry.image_size, entry.select_layer) for entry in config.encoders}
    assert set(sizes.values()) <= {(224, -2), (224, "norm")}


@pytest.mark.parametrize(
    ("level", "wanted"),
    [(1, 13312), (2, 3328), (3, 1424), (4, 832), (5, 544), (8, 208), (12, 80), (16, 80), (24, 32)],
)
def test_tokens_of_videogpt_plus(level, wanted):
    """The table of the published fork."""
    run = config_at(f"preset=videogpt-plus,towers=video=f.pt,pool_level={level}")
    config = model_config(run)
    assert tokens(config, 16) == wanted and config.encoder_names == ("image", "video")
    for name, side in (("image", 24), ("video", 16)):
        run = config_at(f"preset=videogpt-plus-{name},towers={name}=f.pt")
        assert tokens(model_config(run), 1) == side**2


@pytest.mark.parametrize(
    ("arg", "width", "wanted"),
    [
        ("preset=languagebind-single", 4096, [4_198_400]),
        ("preset=merv-frozen", 4096, [4_198_400, 4_198_400, 3_149_824, 3_149_824]),
        ("preset=videogpt-plus,towers=video=f.pt", 3072, [12_589_056, 13_768_704]),
    ],
)
def test_projectors_have_as_many_parameters_as_published(arg, width, wanted):
    config = model_config(config_at(arg), width)
    with torch.device("meta"):
        projectors = FusedProjector(config).encoders
    found = [sum(p.numel() for p in projectors[e.name].parameters()) for e in config.encoders]
    assert found == wanted


# What cannot be


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("preset=merv-base", "preset = 'merv-base' must be one of merv-frozen, merv-full"),
        ("preset=merv-frozen,stage=projector", "of preset 'merv-frozen' must be one of sft"),
        ("preset=merv-full,stage=sft,init=x,towers=vivit=y", "come from init"),
        ("preset=siglip-single,towers=vivit=y", "has no vivit; it has siglip"),
        ("preset=siglip-single,towers=siglip", "must be NAME=FOLDER;NAME=FOLDER"),
        ("preset=siglip-single,pool_level=2", "preset 'siglip-single' has none"),
        ("preset=videogpt-plus", "needs towers=video=FILE"),
        ("towers=a=b", "belong to a preset"),
        ("pool_level=2", "belong to a preset"),
        ("stage=more", "stage = 'more' must be one of projector"),
    ],
)
def test_arguments_that_do_not_fit(arg, message):
    with pytest.raises(ValueError, match=message):
        get_config(arg)


def test_every_preset_is_in_the_docs(root):
    page = (root / "docs" / "merv_videogptplus.md").read_text()
    assert all(f"`{name}`" in page for name in PRESETS)
