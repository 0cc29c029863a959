"""`codecvit llava import merv`: what is published computes what it has computed, or is refused."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from codecvit.codec.llava.cli import main
from codecvit.llava import LlavaForConditionalGeneration, load_vid
from codecvit.llava.merv.checkpoint import MervConfig

from .made import moving, write_video
from .merv_made import FRAMES, QUERY, Merv, draw_towers, save_language_model


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """(name -> tower, name -> folder)."""
    made, folder = draw_towers(), tmp_path_factory.mktemp("towers")
    for name, tower in made.items():
        tower.save_pretrained(folder / name)
    return made, {name: folder / name for name in made}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp("lm"))


@pytest.fixture
def convert(towers, lm, tmp_path):
    """(a MERV's folder, names of its encoders) -> exit status, folder of the model."""

    def run(folder, names, *more, out="model"):
        given = [f"--encoder={name}={towers[1][name]}" for name in names]
        argv = ["import", "merv", str(folder), "--lm", str(lm), "--dtype", "float32", *given]
        return main([*argv, "--out", str(tmp_path / out), *more]), tmp_path / out

    return run


def pixels():
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(8, 3, 6, 6, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=224, mode="bicubic").clamp(0, 1)
    return (fine * 255).to(torch.uint8).movedim(1, -1).contiguous()


def same_logits(merv, folder, tolerance=1e-4):
    """The imported model's logits are those of the checkpoint; returns the model."""
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    clip, text = pixels(), [257, 40, 41, 42, 43]
    seen = len(merv.visual_tokens(clip)[0])
    ids = torch.tensor([[text[0], *[-200] * seen, *text[1:]]])
    count = model.config.frame_rule.count
    with torch.no_grad():
        out = model(ids, frames=clip[:: 8 // count], frame_counts=torch.tensor([count]))
    torch.testing.assert_close(out.logits[0], merv.logits(text, clip), atol=tolerance, rtol=1e-3)
    if (wanted := merv.visual_tokens(clip)[1]) is not None and len(wanted) > 1:
        torch.testing.assert_close(out.fusion_weights[0], wanted, atol=1e-4, rtol=1e-3)
        assert wanted.max() - wanted.min() > 0.05  # else the fusion is not seen
    return model


@pytest.mark.parametrize(
    ("arch", "fusion", "names"),
    [
        ("no-align+3davg+linear", "cross_attention_avg_lq", list(FRAMES)),
        ("3davg+gelu-mlp", "concat_channel_ln", ["siglip", "vivit"]),
        ("3dconv+linear", "concat_channel", ["vivit", "siglip"]),
        ("avg+linear", "first", ["siglip", "dinov2"]),
        ("attntv+linear", "cross_attention_avg_lq", ["siglip", "dinov2"]),
        ("no-align+3davg+linear", "concat", ["siglip", "dinov2"]),
        ("no-align+3davg+linear", "cross_attention_avg_lq", ["siglip"]),
    ],
)
def test_an_imported_model_computes_what_it_has(convert, towers, tmp_path, arch, fusion, names):
    *_, pooling, last = arch.split("+")
    pooling = "3davg" if pooling == "avg" else pooling
    chosen = {name: towers[0][name] for name in names}
    merv = Merv(chosen, last, pooling, fusion)
    status, folder = convert(merv.save(tmp_path / "merv", arch), names)
    assert status == 0
    model = same_logits(merv, folder)
    assert model.config.splice == "after_bos" and model.config.template == "pure"
    assert [entry.frames for entry in model.config.encoders] == [FRAMES[n] for n in names]


def test_the_quick_start_runs_on_it(convert, towers, tmp_path):
    """The published calls, at their full length."""
    merv = Merv(towers[0], "linear", "3davg", "cross_attention_avg_lq")
    status, folder = convert(merv.save(tmp_path / "merv"), list(FRAMES), out="merv-full")
    assert status == 0
    vidlm = load_vid("merv-full", hf_token="unused", cache_dir=tmp_path)
    vidlm.to(torch.device("cpu"), dtype=torch.bfloat16)
    builder = vidlm.get_prompt_builder()
    builder.add_turn(role="human", message="Describe what is happening in this video.")
    clip = write_video(tmp_path / "clip.mp4", moving(frames=30))
    options = {"do_sample": True, "temperature": 0.4, "max_new_tokens": 8, "min_length": 1}
    frames = [FRAMES[name] for name in FRAMES]
    assert vidlm.num_frames == frames
    prompt = builder.get_prompt()
    assert isinstance(vidlm.generate(str(clip), prompt, num_frames=frames, **options), str)
    with pytest.raises(ValueError, match=r"num_frames = \[4, 4, 4, 4\] does .*\[4, 4, 8, 4\]"):
        vidlm.generate(str(clip), prompt, num_frames=[4, 4, 4, 4], **options)
    with pytest.raises(ValueError, match="holds a checkpoint of MERV"):
        load_vid(tmp_path / "merv")


def test_tensors_that_do_not_fit_are_named(convert, towers, tmp_path, capsys):
    chosen = {name: towers[0][name] for name in ("siglip", "dinov2")}
    merv = Merv(chosen, "linear", "3davg", "cross_attention_avg_lq")
    folder = merv.save(tmp_path / "merv")
    path = folder / "checkpoints" / "latest-checkpoint.pt"
    whole = torch.load(path, weights_only=True)

    def refused(change, *names):
        stored = {part: dict(tensors) for part, tensors in whole["model"].items()}
        change(stored)
        torch.save({"model": stored}, path)
        status, out = convert(folder, list(chosen))
        told = capsys.readouterr().err
        assert status == 1 and not out.exists()
        assert all(name in told for name in names), told

    refused(
        lambda m: m["projectors"].pop("1.projector.projector.bias"),
        "projectors lacks 1.projector.projector.bias",
    )
    refused(
        lambda m: m["projectors"].update({"2.projector.projector.bias": torch.zeros(32)}),
        "projectors has too much: 2.projector.projector.bias",
    )
    refused(
        lambda m: m["projectors"].update({"0.projector.projector.weight": torch.zeros(32, 31)}),
        "0.projector.projector.weight is [32, 31], and has to be [32, 32]",
    )
    refused(
        lambda m: m["llm_backbone"].pop("llm.model.norm.weight"),
        "llm_backbone lacks llm.model.norm.weight",
    )
    refused(
        lambda m: m["llm_backbone"].update({"llm.model.extra": torch.zeros(1)}),
        "llm_backbone has too much: llm.model.extra",
    )
    refused(lambda m: m["feature_fusion"].pop("Q"), "feature_fusion", "there have to be Q")
    refused(
        lambda m: m["feature_fusion"].update(
            {"attention.q_proj_weight": torch.zeros(QUERY, QUERY + 1)}
        ),
        "feature_fusion",
        "q_proj_weight",
    )
    refused(lambda m: m["feature_fusion"].update({"pe": torch.zeros(4, 32)}), "'pe'")
    refused(lambda m: m.pop("llm_backbone"), "model lacks llm_backbone")
    refused(lambda m: m.update({"video_backbone": {}}), "model has too much: video_backbone")


def test_names_of_old_checkpoints(convert, towers, tmp_path):
    merv = Merv({"siglip": towers[0]["siglip"]}, "linear", "3davg", "cross_attention_avg_lq")
    folder = merv.save(tmp_path / "merv", num_frames=4)
    path = folder / "checkpoints" / "latest-checkpoint.pt"
    model = torch.load(path, weights_only=True)["model"]
    model["projector"] = {n.removeprefix("0."): t for n, t in model.pop("projectors").items()}
    model["adapter"] = model.pop("feature_fusion")
    torch.save({"model": model}, path)
    status, out = convert(folder, ["siglip"])
    assert status == 0
    same_logits(merv, out)


class Strange:
    """Something that only a pickle brings to life."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_backbone_ids": ["hiera-base-plus-video"]}, "'hiera-base-plus-video' is not supp"),
        ({"feature_fusion": "scalar"}, "feature_fusion = 'scalar' is not supported"),
        ({"arch_specifier": "conv+linear"}, "arch_specifier = 'conv\\+linear' is not supported"),
        ({"arch_specifier": "3davg+none"}, "is not supported"),
        ({"projector_token_length": 5}, "is no square"),
        ({"num_frames": [4, 4]}, "of 1 video_backbone_ids"),
        ({"num_frames": None}, None),
    ],
)
def test_configurations_that_are_not_supported(towers, tmp_path, change, message):
    merv = Merv({"siglip": towers[0]["siglip"]}, "linear", "3davg", "first")
    folder = merv.save(tmp_path / "merv", **change)
    if message is None:
        known = json.loads((folder / "config.json").read_text())
        del known["model"]["num_frames"]
        (folder / "config.json").write_text(json.dumps(known))
        message = "model has no num_frames"
    with pytest.raises(ValueError, match=message):
        MervConfig.read(folder)


def test_frames_of_time_are_pooled_by_their_number(towers, tmp_path):
    merv = Merv({"siglip": towers[0]["siglip"]}, "linear", "3davg", "first")
    folder = merv.save(tmp_path / "merv", "3davg+frame2+linear")
    assert MervConfig.read(folder).pool == (2, 2, 2)


def test_what_is_refused_before_anything_is_read(convert, towers, tmp_path, capsys):
    merv = Merv({"siglip": towers[0]["siglip"]}, "linear", "3davg", "first")
    folder = merv.save(tmp_path / "merv", llm_backbone_id="qwen2.5-7b-instruct")
    for names, more, message in [
        (["siglip", "vivit"], [], "was trained with the encoders siglip, and folders are given"),
        ([], [], "given of none"),
        (["siglip"], [], "'qwen2.5-7b-instruct' says no template of ours"),
        (["siglip"], ["--encoder=siglip=again"], "each name once"),
    ]:
        assert convert(folder, names, *more)[0] == 1
        assert message in capsys.readouterr().err
    path = folder / "checkpoints" / "latest-checkpoint.pt"
    torch.save({"model": {"projectors": Strange()}}, path, pickle_module=pickle)
    assert convert(folder, ["siglip"], "--template", "pure")[0] == 1
    assert "cannot be read as bare tensors" in capsys.readouterr().err
    path.unlink()
    assert convert(folder, ["siglip"], "--template", "pure")[0] == 1
    assert "it is no checkpoint of MERV" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.zeros(1))
    (tmp_path / "model").mkdir()
    assert convert(folder, ["siglip"], "--template", "pure")[0] == 1
    assert "exists: name a folder that does not" in capsys.readouterr().err
