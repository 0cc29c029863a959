"""Weights from folders: all of them, none besides, bit for bit; and published folders' names."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    VivitConfig,
    VivitForVideoClassification,
)

from codecvit.llava.encoders.internvideo2 import InternVideo2Config
from codecvit.llava.encoders.loading import load_tower, pixel_statistics
from codecvit.llava.encoders.registry import KINDS, config_of, spec_of

from ..conftest import language_config, vision_config
from .made import TINY, kind_of, noise, stir, tiny_tower

WEIGHTS = "model.safetensors"


def saved(name, folder):
    """(spec, tower) of a tiny encoder whose folder this is from now on."""
    spec, tower = tiny_tower(name)
    tower.save_pretrained(folder)
    return spec, tower


def edit(folder, change):
    """Rewrites the weights of a folder; `change` gets the tensors by name."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.fixture
def small_internvideo2(monkeypatch):
    """InternVideo2 whose published size is that of TINY."""
    fields = _without_type("internvideo2")

    class Small(InternVideo2Config):
        def __init__(self, **kwargs):
            super().__init__(**{**fields, **kwargs})

    spec = KINDS["internvideo2"]
    spec = dataclasses.replace(spec, classes=((Small, spec.model_class),))
    monkeypatch.setitem(KINDS, "internvideo2", spec)


@pytest.mark.parametrize("name", TINY)
def test_a_folder_gives_back_the_same_bits(name, tmp_path):
    spec, tower = saved(name, tmp_path)
    loaded = load_tower(kind_of(name), tmp_path)
    assert not loaded.training
    before, after = tower.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(spec.features(loaded, noise(), -2), spec.features(tower, noise(), -2))
    half = load_tower(kind_of(name), tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", TINY)
def test_tensors_that_are_missing_strange_or_misshapen_are_named(name, tmp_path):
    saved(name, tmp_path)
    kept = load_file(tmp_path / WEIGHTS)
    victim = min(k for k in kept if "norm" in k and k.endswith("weight"))
    tail = ".".join(victim.split(".")[-2:])

    def load():
        return load_tower(kind_of(name), tmp_path)

    edit(tmp_path, lambda tensors: tensors.pop(victim))
    with pytest.raises(ValueError, match=f"it lacks .*{tail}$"):
        load()
    save_file({**kept, "strange.weight": torch.zeros(2)}, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match="it has too much: strange.weight$"):
        load()
    save_file({**kept, victim: torch.zeros(3, 5)}, tmp_path / WEIGHTS, {"format": "pt"})
    # transformers 4 tells the name alone.
    shape = r"( \[3, 5\] for \[32\])?"
    with pytest.raises(ValueError, match=rf"in another shape: .*{tail}{shape}$"):
        load()
    save_file(kept, tmp_path / WEIGHTS, {"format": "pt"})
    load()


def test_what_is_no_folder_of_an_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere has no config.json"):
        load_tower("siglip", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no config.json"):
        load_tower("siglip", tmp_path)
    saved("siglip", tmp_path)
    with pytest.raises(ValueError, match="kind 'clip' has model_type 'siglip_vision_model'"):
        load_tower("clip", tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="has no weights: it needs model.safetensors or pytorch"):
        load_tower("siglip", tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="kind 'siglip' is read from its folder"):
        load_tower("siglip", tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ("siglip", "languagebind_video"))
def test_old_weight_files_are_read_as_bare_tensors(name, tmp_path):
    spec, tower = saved(name, tmp_path)
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "pytorch_model.bin")
    (tmp_path / WEIGHTS).unlink()
    loaded = load_tower(name, tmp_path)
    assert torch.equal(spec.features(loaded, noise(), -2), spec.features(tower, noise(), -2))


class Trap:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


@pytest.mark.parametrize("kind", ("siglip", "internvideo2"))
def test_no_pickle_runs(kind, tmp_path, small_internvideo2):
    saved(kind, tmp_path)
    (tmp_path / WEIGHTS).unlink()
    file = tmp_path / "pytorch_model.bin"
    torch.save({"weight": Trap(tmp_path / "mark")}, file)
    with pytest.raises((pickle.UnpicklingError, OSError, ValueError)):
        load_tower(kind, tmp_path if kind == "siglip" else file)
    assert not (tmp_path / "mark").exists()


def test_sharded_weights(tmp_path):
    spec, tower = tiny_tower("siglip")
    tower.save_pretrained(tmp_path, max_shard_size="40KB")
    assert not (tmp_path / WEIGHTS).exists()
    loaded = load_tower("siglip", tmp_path)
    assert torch.equal(spec.features(loaded, noise(), -2), spec.features(tower, noise(), -2))


def test_the_vision_half_of_a_whole_is_read(tmp_path):
    """openai/clip-vit-* and google/siglip-* are folders of text and vision together."""
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 99}
    for kind, config_class, model_class in (
        ("clip", CLIPConfig, CLIPModel),
        ("siglip", SiglipConfig, SiglipModel),
        ("hf", CLIPConfig, CLIPModel),
    ):
        half = TINY[{"hf": "clip"}.get(kind, kind)]
        whole = stir(model_class(config_class(text_config=text, vision_config=half)))
        folder = tmp_path / kind
        whole.save_pretrained(folder)
        tower, spec = load_tower(kind, folder), spec_of(kind)
        own = dict(whole.vision_model.named_parameters())
        for name, parameter in tower.named_parameters():
            assert torch.equal(parameter, own[name.removeprefix("vision_model.")]), name
        assert spec.features(tower, noise(), -2).shape == (2, 4, 16, 32)


def test_a_classifier_gives_its_encoder(tmp_path):
    """google/vivit-b-16x2-kinetics400 and many ViTs are published with a head."""
    for kind, model in (
        ("vivit", VivitForVideoClassification(VivitConfig(**_without_type("vivit")))),
        ("hf", ViTForImageClassification(ViTConfig(**_without_type("hf")))),
    ):
        stir(model).save_pretrained(tmp_path / kind)
        tower = load_tower(kind, tmp_path / kind)
        own = dict(model.base_model.named_parameters())
        assert {name for name, _ in tower.named_parameters()} == own.keys()
        for name, parameter in tower.named_parameters():
            assert torch.equal(parameter, own[name])


def _without_type(name):
    return {k: v for k, v in TINY[name].items() if k != "model_type"}


def test_a_languagebind_folder_as_it_is_published(tmp_path):
    """A CLIP's names, a whole configuration of its own type, an index buffer from older days."""
    spec, tower = tiny_tower("languagebind_video")
    vision = {**_without_type("languagebind_video"), "model_type": "clip_vision_model"}
    vision |= {
        "add_time_attn": True,
        "lora_r": 64,
        "force_patch_dropout": 0.5,
        "hidden_act": "gelu",
    }
    config = {"model_type": "LanguageBindVideo", "vision_config": vision, "projection_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {
        **tower.state_dict(),
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "text_model.final_layer_norm.weight": torch.ones(8),
        "visual_projection.weight": torch.zeros(16, 32),
        "text_projection.weight": torch.zeros(16, 8),
        "logit_scale": torch.tensor(2.6592),
    }
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    loaded = load_tower("languagebind_video", tmp_path)
    assert torch.equal(spec.features(loaded, noise(), -2), spec.features(tower, noise(), -2))
    vision["add_time_attn"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="add_time_attn"):
        load_tower("languagebind_video", tmp_path)


@pytest.mark.parametrize("wrapper", (None, "model", "module"))
def test_an_internvideo2_file_as_it_is_published(wrapper, tmp_path, small_internvideo2):
    """Of its many parts the encoder's are read, strictly."""
    spec, tower = tiny_tower("internvideo2")
    tensors = {f"vision_encoder.{name}": x for name, x in tower.state_dict().items()}
    tensors |= {
        "vision_encoder.clip_pos_embed": torch.zeros(1, 65, 32),
        "vision_encoder.clip_img_pos_embed": torch.zeros(1, 17, 32),
        "vision_encoder.clip_projector.norm1_q.weight": torch.zeros(32),
        "vision_encoder.clip_decoder.0.head.weight": torch.zeros(8, 32),
        "vision_encoder.final_clip_decoder.head.weight": torch.zeros(8, 32),
        "text_encoder.bert.embeddings.word_embeddings.weight": torch.zeros(9, 8),
        "vision_proj.weight": torch.zeros(8, 8),
        "temp": torch.tensor(0.07),
    }
    file = tmp_path / "InternVideo2-stage2_1b-224p-f4.pt"

    def load():
        torch.save({wrapper: tensors} if wrapper else tensors, file)
        return load_tower("internvideo2", file)

    loaded = load()
    assert not loaded.training
    assert torch.equal(spec.features(loaded, noise(), -2), spec.features(tower, noise(), -2))
    kept = tensors.pop("vision_encoder.blocks.1.ls2.gamma")
    with pytest.raises(ValueError, match="it lacks blocks.1.ls2.gamma"):
        load()
    tensors["vision_encoder.blocks.1.ls2.gamma"] = kept[:5]
    with pytest.raises(ValueError, match=r"another shape: blocks.1.ls2.gamma \[5\] for \[32\]"):
        load()
    tensors["vision_encoder.blocks.1.ls2.gamma"] = kept
    tensors["vision_encoder.blocks.3.ls2.gamma"] = kept
    with pytest.raises(ValueError, match="it has too much: blocks.3.ls2.gamma"):
        load()


def test_a_file_without_tensors_is_refused(tmp_path, small_internvideo2):
    torch.save(torch.zeros(3), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        load_tower("internvideo2", tmp_path / "x.pt")


def test_configurations_of_other_types_are_refused():
    with pytest.raises(ValueError, match="kind 'dinov2' has model_type 'vit': .* one of dinov2, d"):
        config_of("dinov2", TINY["hf"])
    with pytest.raises(ValueError, match="model_type 'nonsense': it must be one of those that"):
        config_of("hf", {"model_type": "nonsense"})
    given = config_of("dinov2", TINY["dinov2"])
    assert config_of("dinov2", given) is given
    assert config_of("onevision_encoder", vision_config()).hidden_size == 64
    with pytest.raises(ValueError, match="kind 'onevision_encoder' has model_type 'qwen2'"):
        config_of("onevision_encoder", language_config())


def test_our_export_is_strict_as_well(encoder_dir, tmp_path):
    tower = load_tower("onevision_encoder", encoder_dir)
    tower.save_pretrained(tmp_path)
    edit(tmp_path, lambda tensors: tensors.pop("encoder.layers.1.mlp.fc1.weight"))
    with pytest.raises(ValueError, match="it lacks encoder.layers.1.mlp.fc1.weight"):
        load_tower("onevision_encoder", tmp_path)


def test_pixel_statistics_of_a_folder(tmp_path):
    assert pixel_statistics(tmp_path) == {}
    stated = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "size": 224}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    assert pixel_statistics(tmp_path) == {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}


@pytest.mark.slow
def test_a_hub_name_is_read_through_the_cache_of_the_hub(tmp_path):
    """Offline, from a cache as huggingface_hub lays it out; a name that is not there fails."""
    revision = "0" * 40
    home = tmp_path / "hub" / "models--someone--tiny-siglip"
    saved("siglip", home / "snapshots" / revision)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(revision)
    code = (
        "from codecvit.llava.encoders.loading import load_tower\n"
        "print(load_tower('siglip', 'someone/tiny-siglip').config.hidden_size)\n"
        "load_tower('siglip', 'someone/else')\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == "32"
    assert "OSError" in found.stderr
    assert "someone/else" in found.stderr
