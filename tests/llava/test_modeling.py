"""The model as a transformers model: parts, saving and loading, training."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig

from codecvit.convert.hf.image_processing_onevision_encoder import CLIP_MEAN, CLIP_STD
from codecvit.convert.hf.modeling_onevision_encoder import OneVisionEncoderModel
from codecvit.llava import LlavaConfig, LlavaForConditionalGeneration
from codecvit.llava.model.vision import vision_config_of

from .conftest import language_config, make_visual, vision_config

IMAGE = make_visual(0)
VIDEO = make_visual(1, frames=4, rows=4, columns=4, keep=30)
ROWS = [[5, 6, IMAGE, 7, 8], [10, 11], [VIDEO, 13]]


@torch.no_grad()
def logits(model, batch, rows=ROWS):
    return model(**batch(model.config, rows)).logits


@pytest.mark.parametrize("layer", [-1, -2, 0, 2])
def test_features_are_a_hidden_state_of_the_encoder(layer, make_model, encoder_dir):
    """And those of uint8 levels are those of pixels that the caller normalises."""
    model = make_model(vision_select_layer=layer)
    patches = torch.cat([IMAGE[0], VIDEO[0]])
    positions, lengths = torch.cat([IMAGE[1], VIDEO[1]]), torch.tensor([16, 30])
    pixels = (patches.view(-1, 3) / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    pixels = pixels.view(patches.shape)
    tower = OneVisionEncoderModel.from_pretrained(encoder_dir)
    with torch.no_grad():
        expected = tower(
            pixels, patch_positions=positions, lengths=lengths, output_hidden_states=True
        ).hidden_states[layer]
        torch.testing.assert_close(model.encode_visuals(patches, positions, lengths), expected)
        torch.testing.assert_close(model.encode_visuals(pixels, positions, lengths), expected)


def test_levels_become_pixels_in_float32(make_model):
    """Also for a bfloat16 encoder: only the finished pixels are rounded."""
    model = make_model(dtype=torch.bfloat16)
    pixels = (IMAGE[0].view(-1, 3) / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    lengths = torch.tensor([16])
    got = model.encode_visuals(IMAGE[0], IMAGE[1], lengths)
    assert torch.equal(got, model.encode_visuals(pixels.view(16, -1), IMAGE[1], lengths))


def test_an_export_folder_loads_with_its_pixel_statistics(tmp_path, encoder_dir):
    """Its own code is neither needed nor run; auto_map does not survive into another folder."""
    folder = tmp_path / "export"
    OneVisionEncoderModel.from_pretrained(encoder_dir).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_of_nobody.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]})
    )
    model = LlavaForConditionalGeneration.from_parts(folder, language_config())
    assert model.config.image_mean == [0.1, 0.2, 0.3]
    assert model.config.image_std == [0.5, 0.6, 0.7]
    assert "auto_map" not in model.config.to_dict()["vision_config"]
    red = torch.tensor([[255, 0, 0] * 16], dtype=torch.uint8)
    got = model.encode_visuals(red, torch.zeros(1, 3, dtype=torch.long), torch.tensor([1]))
    pixels = torch.tensor([[0.9 / 0.5, -0.2 / 0.6, -0.3 / 0.7] * 16])
    expected = model.encode_visuals(pixels, torch.zeros(1, 3, dtype=torch.long), torch.tensor([1]))
    torch.testing.assert_close(got, expected)


@pytest.mark.slow
def test_a_folder_of_codecvit_export_gives_the_same_model(encoder_dir, tmp_path, batch):
    command = [sys.executable, "-m", "codecvit", "export", encoder_dir, "--out", tmp_path / "out"]
    subprocess.run([*map(str, command), "--dtype", "float32"], check=True, capture_output=True)
    assert (tmp_path / "out" / "modeling_onevision_encoder.py").is_file()
    models = []
    for folder in (encoder_dir, tmp_path / "out"):
        torch.manual_seed(0)
        models.append(LlavaForConditionalGeneration.from_parts(folder, language_config()))
    assert torch.equal(logits(models[0], batch), logits(models[1], batch))


def test_folders_that_are_no_encoder_are_refused(tmp_path, lm_dir):
    with pytest.raises(ValueError, match=r"has no config.json: name a folder that `codecvit exp"):
        LlavaForConditionalGeneration.from_parts(tmp_path, language_config())
    with pytest.raises(ValueError, match="model_type 'qwen2': it must be one of"):
        LlavaForConditionalGeneration.from_parts(lm_dir, language_config())
    with pytest.raises(ValueError, match="text_config has model_type 'no_such"):
        LlavaConfig(vision_config(), {"model_type": "no_such_model"})
    with pytest.raises(ValueError, match="needs vision_config and text_config"):
        LlavaConfig(vision_config())


def test_parts_keep_their_weights(encoder_dir, lm_dir):
    """And the template follows from the language model's type."""
    model = LlavaForConditionalGeneration.from_parts(encoder_dir, lm_dir, projector="linear")
    tower = OneVisionEncoderModel.from_pretrained(encoder_dir).state_dict()
    text = AutoModelForCausalLM.from_pretrained(lm_dir).state_dict()
    for part, expected in ((model.vision_tower, tower), (model.language_model, text)):
        got = part.state_dict()
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert model.config.template == "chatml"
    assert not model.training
    with pytest.raises(ValueError, match="set template to one of"):
        LlavaForConditionalGeneration.from_parts(encoder_dir, language_config("llama"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "phi3"])
def test_saving_in_shards_and_loading_gives_the_same_model(
    kind, dtype, make_model, tmp_path, batch
):
    fields = {"pool": (2, 2, 3), "pool_empty": "learned", "position_embedding": "sincos"}
    model = make_model(kind, dtype=dtype, projector="3davg+mlp2x_gelu", pool_first=False, **fields)
    model.config.timestamps = True
    for parameter in model.projector.parameters():  # also what starts at zero
        torch.nn.init.normal_(parameter, std=0.1)
    model.language_model.generation_config = GenerationConfig(
        eos_token_id=[258, 256], pad_token_id=256
    )
    model.save_pretrained(tmp_path / "model", max_shard_size="60kB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert not loaded.training
    state, expected = loaded.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    names = ("projector", "pool", "pool_level", "pool_empty", "pool_first", "position_embedding")
    for name in (*names, "vision_select_layer", "timestamps", "template", "image_mean"):
        assert getattr(loaded.config, name) == getattr(model.config, name), name
    assert loaded.language_model.generation_config.eos_token_id == [258, 256]
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_another_dtype_can_be_asked_for(make_model, tmp_path, batch):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    half = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(
        logits(half, batch).float(), logits(model, batch), rtol=0.05, atol=0.05
    )


def test_a_model_of_several_dtypes_is_not_saved(make_model, tmp_path):
    """One folder has one dtype: loading would round what was float32."""
    model = make_model()
    model.vision_tower.to(torch.bfloat16)
    with pytest.raises(ValueError, match="float32.*bring them to one dtype"):
        model.save_pretrained(tmp_path / "model")


def test_tied_embeddings_stay_tied(encoder_dir, tmp_path, batch):
    text = language_config(tie_word_embeddings=True)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration.from_parts(encoder_dir, text)
    model.save_pretrained(tmp_path / "model")
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_the_auto_classes_know_the_model(make_model, tmp_path, batch):
    model = make_model(projector="merger")
    model.save_pretrained(tmp_path / "model")
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "model"), LlavaConfig)
    loaded = AutoModel.from_pretrained(tmp_path / "model")
    assert isinstance(loaded, LlavaForConditionalGeneration)
    assert torch.equal(logits(loaded, batch), logits(model, batch))


FRESH = """
import sys, torch
from codecvit.llava import LlavaForConditionalGeneration
model = LlavaForConditionalGeneration.from_pretrained(sys.argv[1])
arguments = torch.load(sys.argv[1] + "/arguments.pt", weights_only=True)
expected = arguments.pop("expected")
with torch.no_grad():
    assert torch.equal(model(**arguments).logits, expected)
assert "jax" not in sys.modules
"""


@pytest.mark.slow
def test_a_fresh_process_loads_the_same_model_without_jax(make_model, tmp_path, batch):
    model = make_model(projector="attentive+linear", pool=(2, 2, 2))
    model.save_pretrained(tmp_path)
    arguments = batch(model.config, ROWS)
    expected = logits(model, batch)
    torch.save({**arguments, "expected": expected}, tmp_path / "arguments.pt")
    script = "import torch; torch.set_num_threads(1)\n" + FRESH
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "USE_FLAX": "0"},  # transformers 4.57 would import an installed jax
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_configurations_of_another_class_become_ours():
    """An export that was loaded by its own code has an equal class of another module."""
    foreign = vision_config().to_dict()
    assert vision_config_of(foreign).to_dict() == vision_config().to_dict()
    own = vision_config()
    assert vision_config_of(own) is own


def test_attention_is_chosen_for_all_parts(make_model, tmp_path, batch):
    model = make_model(attn_implementation="eager")
    model.save_pretrained(tmp_path / "model")
    sdpa = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "model", attn_implementation="sdpa"
    )
    for name, one in (("eager", model), ("sdpa", sdpa)):
        assert one.vision_tower.config._attn_implementation == name
        assert one.language_model.config._attn_implementation == name
    torch.testing.assert_close(logits(sdpa, batch), logits(model, batch), rtol=1e-4, atol=1e-5)


def gradients(model, arguments):
    model.zero_grad()
    model(**arguments).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_no_gradient(make_model, batch):
    """But recomputes the blocks of encoder and language model."""
    model = make_model(projector="merger").train()
    arguments = batch(model.config, ROWS, labels=True)
    expected = gradients(model, arguments)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls = {"vision": 0, "text": 0}

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    model.vision_tower.encoder.layers[0].mlp.register_forward_pre_hook(count("vision"))
    model.language_model.model.layers[0].mlp.register_forward_pre_hook(count("text"))
    got = gradients(model, arguments)
    assert calls == {"vision": 2, "text": 2}
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, msg=name)


def test_a_frozen_encoder_keeps_no_activations(make_model, batch):
    """Though transformers makes embeddings require gradients when checkpointing is on."""
    model = make_model().train()
    model.vision_tower.requires_grad_(False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    arguments = batch(model.config, ROWS)
    visual = (arguments[name] for name in ("patches", "positions", "lengths"))
    assert not model.encode_visuals(*visual).requires_grad
    names = gradients(model, batch(model.config, ROWS, labels=True))
    assert {name.split(".")[0] for name in names} == {"projector", "language_model"}


@pytest.mark.parametrize("layer", [-1, -2, 1])
@pytest.mark.parametrize("rows", [ROWS, [[1, 2, 3]]], ids=["visuals", "text"])
def test_every_parameter_that_can_be_trained_has_a_gradient(layer, rows, make_model, batch):
    """Also in a batch of text alone, or processes that share gradients would wait for ever."""
    model = make_model(
        projector="3davg+mlp2x_gelu", pool_empty="learned", vision_select_layer=layer
    ).train()
    got = gradients(model, batch(model.config, rows, labels=True))
    names = {id(p): n for n, p in model.named_parameters()}
    trained = {names[id(p)] for p in model.vision_parameters()}
    assert {n for n in got if n.startswith("vision_tower")} == trained
    rest = {n for n in names.values() if not n.startswith("vision_tower")}
    assert {n for n in got if not n.startswith("vision_tower")} == rest
    assert all("head" not in n and "layernorm_post" not in n for n in trained)
    if rows is not ROWS:  # nothing to see, nothing to learn
        assert all(not g.any() for n, g in got.items() if not n.startswith("language_model"))


def test_text_alone_has_the_logits_of_the_language_model(make_model, batch):
    model = make_model()
    arguments = batch(model.config, [[1, 2, 3, 4]])
    with torch.no_grad():
        expected = model.language_model(arguments["input_ids"]).logits
        for mode in (model.train(), model.eval()):
            torch.testing.assert_close(mode(**arguments).logits, expected)


def test_sharded_training_knows_the_blocks_of_all_parts(make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    for one in (model, LlavaForConditionalGeneration.from_pretrained(tmp_path / "model")):
        assert {"OneVisionEncoderLayer", "Qwen2DecoderLayer"} <= set(one._no_split_modules)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "phi3"])
def test_bfloat16_and_autocast_are_close_to_float32(kind, make_model, batch):
    model = make_model(kind, projector="merger")
    expected = logits(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(logits(model, batch).float(), expected, rtol=0.05, atol=0.05)
    model.to(torch.bfloat16)
    torch.testing.assert_close(logits(model, batch).float(), expected, rtol=0.05, atol=0.05)


def test_a_tiny_model_learns_what_it_sees(make_model, batch):
    """Projector and language model overfit: the answer depends on the image alone."""
    torch.manual_seed(0)
    model = make_model(projector="3davg+mlp2x_gelu", pool=(2, 1, 1)).train()
    model.vision_tower.requires_grad_(False)
    rows = [[1, 2, make_visual(seed), 3, 40 + seed] for seed in range(4)]
    arguments = batch(model.config, rows, labels=True)
    arguments["labels"][:, :-1] = -100
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(**arguments).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
