"""Published recipes as presets: their numbers, their tokens, their scripts, and tiny runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
    VivitConfig,
)

from codecvit.configs.llava import get_config
from codecvit.configs.llava_presets import PRESETS
from codecvit.llava import LlavaConfig, LlavaForConditionalGeneration
from codecvit.llava.encoders.internvideo2 import InternVideo2Config, InternVideo2VisionModel
from codecvit.llava.encoders.languagebind import LanguageBindVideoConfig
from codecvit.llava.model.fused_projector import FusedProjector
from codecvit.llava.model.parts import parse_source
from codecvit.llava.model.token_counts import num_visual_tokens
from codecvit.llava.training.config import parse_config
from codecvit.llava.training.start import load_run, start_model
from codecvit.llava.training.train import train

from .conftest import language_config, make_tokenizer
from .made import moving, turns, write_rows, write_video
from .merv_made import draw_towers
from .runs import metrics_of, write_data
from .test_train_scripts import command_of, config_of, dry_run

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


# Numbers


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


# Scripts


@pytest.fixture
def files(tmp_path):
    for name in ("rows.json", "captions.json", "video.pt", "image.safetensors"):
        (tmp_path / name).write_text("[]")
    names = {"DATA": "rows.json", "CAPTIONS": "captions.json", "VIDEO": "video.pt"}
    return {name: str(tmp_path / path) for name, path in names.items()}


def commands_of(done):
    """The commands of a dry run."""
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("$")]
    return [command_of(type(done)(done.args, 0, line, "")) for line in lines]


def test_merv_frozen_is_launched_on_eight_gpus(root, files):
    (command,) = commands_of(dry_run(root, "merv_frozen.sh", "--config.optim.lr=1e-5", **files))
    assert command[command.index("--fsdp_transformer_layer_cls_to_wrap") + 1] == "LlamaDecoderLayer"
    config = config_of(command)
    assert config == parse_config(
        get_config(f"preset=merv-frozen,data={files['DATA']},seed=7").to_dict()
    )
    assert "--workdir=runs/llava/merv-frozen" in command and command[-1].endswith("lr=1e-5")
    towers = {"PRESET": "vivit-single", "TOWERS": "vivit=my folder"}
    (command,) = commands_of(dry_run(root, "merv_frozen.sh", **files, **towers))
    assert config_of(command).model.encoders == ("vivit=vivit:my folder@32",)


def test_merv_full_is_two_stages(root, files):
    first, second = commands_of(dry_run(root, "merv_full.sh", **files))
    assert config_of(first).data.recipe == files["CAPTIONS"]
    assert "--workdir=runs/llava/merv-full/captions" in first
    assert (config_of(first).batch_size, config_of(second).batch_size) == (256, 128)
    assert config_of(second).init == "runs/llava/merv-full/captions"
    assert config_of(second).data.recipe == files["DATA"]
    for stage, wanted in (("captions", first), ("instructions", second)):
        assert commands_of(dry_run(root, "merv_full.sh", **files, STAGE=stage)) == [wanted]


def test_videogpt_plus_is_three_stages(root, files, tmp_path):
    image, video, lora = commands_of(dry_run(root, "videogpt_plus.sh", **files, POOL_LEVEL="4"))
    assert config_of(image).model.encoders[0].startswith("image=clip:openai/")
    assert config_of(video).model.encoders == (f"video=internvideo2:{files['VIDEO']}@16",)
    runs = "runs/llava/videogpt-plus"
    assert f"--workdir={runs}/image" in image and f"--workdir={runs}/video" in video
    assert f"--init-projector=image={runs}/image,video={runs}/video" in lora
    assert config_of(lora).model.pool_level == 4 and len(config_of(lora).model.encoders) == 2
    given = f"image={tmp_path}/image.safetensors,video={tmp_path}/video.pt"
    named = {"STAGE": "lora", "INIT_PROJECTOR": given}
    (command,) = commands_of(dry_run(root, "videogpt_plus.sh", **files, **named))
    assert f"--init-projector={given}" in command


@pytest.mark.parametrize(
    ("script", "changes", "message"),
    [
        ("merv_frozen.sh", {"PRESET": "merv-full"}, "PRESET=merv-full must be"),
        ("merv_frozen.sh", {"DATA": ""}, "DATA is not set"),
        ("merv_full.sh", {"CAPTIONS": ""}, "CAPTIONS is not set"),
        ("merv_full.sh", {"STAGE": "2"}, "STAGE=2 must be all"),
        ("merv_full.sh", {"MICRO": "7"}, "multiple of 8 processes times MICRO=7"),
        ("videogpt_plus.sh", {"VIDEO": "gone.pt"}, "VIDEO=gone.pt is no file"),
        ("videogpt_plus.sh", {"POOL_LEVEL": "0"}, "POOL_LEVEL=0 must be"),
        ("videogpt_plus.sh", {"STAGE": "sft"}, "STAGE=sft must be all"),
        ("videogpt_plus.sh", {"INIT_PROJECTOR": "image=gone"}, "gone does not exist"),
    ],
)
def test_what_scripts_refuse(root, files, script, changes, message):
    done = dry_run(root, script, **{**files, **changes})
    assert done.returncode == 2 and message in done.stderr


# Tiny runs


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


def test_every_preset_is_in_the_docs(root):
    page = (root / "docs" / "merv_videogptplus.md").read_text()
    assert all(f"`{name}`" in page for name in PRESETS)
