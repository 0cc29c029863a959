"""Published recipes as tiny runs: what is trained, and what one stage hands on."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from codecvit.configs.llava import get_config
from codecvit.llava import LlavaForConditionalGeneration
from codecvit.llava.encoders.internvideo2 import InternVideo2Config, InternVideo2VisionModel
from codecvit.llava.training.config import parse_config
from codecvit.llava.training.start import load_run, start_model
from codecvit.llava.training.train import train

from .conftest import language_config, make_tokenizer
from .made import moving, turns, write_rows, write_video
from .merv_made import draw_towers
from .runs import metrics_of, write_data


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Towers, language models and rows, all tiny."""
    folder = tmp_path_factory.mktemp("places")
    for name, tower in draw_towers().items():
        tower.save_pretrained(folder / name)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(3)
    image = CLIPVisionConfig(hidden_size=32, image_size=24, patch_size=6, **sizes)
    CLIPVisionModel(image).save_pretrained(folder / "image")
    video = InternVideo2Config(hidden_size=32, image_size=16, patch_size=8, **sizes)
    InternVideo2VisionModel(video).save_pretrained(folder / "video")
    for kind, template in (("llama", "pure"), ("phi3", "phi3")):
        tokenizer = make_tokenizer(template)
        tokenizer.bos_token = "<s>"
        text = language_config(kind, max_position_embeddings=1200)
        AutoModelForCausalLM.from_config(text).save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    write_data(folder, images=6, texts=2)
    write_video(folder / "clip.mp4", moving(frames=20))
    captions = [
        {"id": "v", "video": "clip.mp4", "conversations": turns("<video>", "It moves.")},
        {"id": "i", "image": "images/1.png", "conversations": turns("<image>", "green")},
    ]
    write_rows(folder / "captions.jsonl", captions * 2)
    return folder


def run_of(places, out, arg, data="rows.jsonl", **changes):
    """Trains two steps; returns the finished run's folder."""
    values = get_config(f"{arg},data={places}/{data},steps=2,batch=4,micro=2,runlocal")
    values.model.pool = (4, 2, 2) if not values.init else None
    values.lora.rank = min(values.lora.rank, 4)
    for name, value in changes.items():
        values[name] = value
    train(parse_config(values.to_dict()), out)
    assert len(metrics_of(out)) == 2
    return out


def towers_of(places, *names):
    return "towers=" + ";".join(f"{name}={places}/{name}" for name in names)


def moved(before, after, prefix):
    """Whether all parameters below `prefix` moved, or all stayed."""
    both = dict(after.named_parameters())
    found = {
        not torch.equal(p, both[name])
        for name, p in before.named_parameters()
        if name.startswith(prefix)
    }
    assert len(found) == 1, prefix
    return found.pop()


def test_a_single_encoder_trains(places, tmp_path):
    """Projector and language model move, the encoder stays."""
    torch.manual_seed(4)
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipVisionConfig(image_size=16, patch_size=4, intermediate_size=32, **tower)
    SiglipVisionModel(config).save_pretrained(tmp_path / "siglip")
    arg = f"preset=siglip-single,{towers_of(tmp_path, 'siglip')},lm={places}/llama"
    config = parse_config(get_config(f"{arg},data=x.jsonl").to_dict())
    run = run_of(places, tmp_path / "run", arg)
    torch.manual_seed(0)
    start, trained = start_model(config), load_run(run)[1]
    assert not moved(start, trained, "vision_tower")
    assert moved(start, trained, "language_model.model.layers.0.self_attn.q_proj")
    assert trained.config.splice == "after_bos" and trained.config.template == "pure"


@pytest.mark.slow
def test_merv_full_trains_and_hands_on(places, tmp_path):
    """Captions of clips and images, then rows with text among them; encoders never move."""
    towers = towers_of(places, "siglip", "vivit", "dinov2", "languagebind")
    first = run_of(
        places, tmp_path / "1", f"preset=merv-full,{towers},lm={places}/llama", "captions.jsonl"
    )
    ended = LlavaForConditionalGeneration.from_pretrained(first / "model")
    second = run_of(places, tmp_path / "2", f"preset=merv-full,stage=sft,init={first}")
    trained = load_run(second)[1]
    assert trained.config.template == "pure" and trained.config.splice == "after_bos"
    assert not moved(ended, trained, "vision_tower")
    assert moved(ended, trained, "language_model.model.layers.0.self_attn.q_proj")
    for part in ("encoders.siglip", "encoders.vivit", "fusion"):
        assert moved(ended, trained, f"projector.{part}")


@pytest.mark.slow
def test_videogpt_plus_trains_from_two_projectors(places, tmp_path):
    """The last stage starts with what the two before have trained, each alone."""
    lm, runs = f"lm={places}/phi3", {}
    for name in ("image", "video"):
        arg = f"preset=videogpt-plus-{name},{towers_of(places, name)},{lm}"
        runs[name] = run_of(places, tmp_path / name, arg, "captions.jsonl")
    given = ",".join(f"{name}={run}" for name, run in runs.items())
    arg = f"preset=videogpt-plus,{towers_of(places, 'image', 'video')},{lm}"
    values = get_config(f"{arg},data={places}/captions.jsonl,runlocal")
    values.init_projector = given
    start = start_model(parse_config(values.to_dict()))
    for name, run in runs.items():
        ended = load_run(run)[1].projector.encoders[name].state_dict()
        begun = start.projector.encoders[name].state_dict()
        assert all(torch.equal(ended[key], begun[key]) for key in ended)
    lora = run_of(places, tmp_path / "lora", arg, "captions.jsonl", init_projector=given)
    trained = LlavaForConditionalGeneration.from_pretrained(lora / "model")
    assert not moved(start_base(start), trained, "vision_tower")
    assert moved(start_base(start), trained, "projector.encoders.image")
    assert trained.config.pool_level == 2 and (lora / "adapter").is_dir()


def start_base(model):
    """A model whose language model has an adapter, for its other parts."""
    return torch.nn.ModuleDict({"vision_tower": model.vision_tower, "projector": model.projector})
