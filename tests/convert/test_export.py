"""An exported folder opens in transformers and in JAX with the weights that went in."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel

import codecvit
from codecvit.convert import torch_input
from codecvit.convert.export import export
from codecvit.convert.export_verb import main
from codecvit.convert.folder import ENCODER_FILES
from codecvit.convert.load import load, read_checkpoint
from codecvit.convert.names import to_hf
from codecvit.convert.weights import read_safetensors


def open_model(folder, **options):
    return AutoModel.from_pretrained(folder, trust_remote_code=True, **options).eval()


def same_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_auto_model_gives_the_numbers_of_the_jax_encoder(small, make_sequence, tmp_path):
    config, params = small
    folder = export(params, config, tmp_path / "parity")
    sequence = make_sequence(1)
    with torch.no_grad():
        theirs = open_model(folder)(**torch_input(sequence))
    with jax.default_matmul_precision("highest"):
        ours = load(folder)(sequence)
    np.testing.assert_allclose(theirs.last_hidden_state[0].numpy(), ours.tokens, atol=1e-4)
    np.testing.assert_allclose(theirs.pooler_output[0].numpy(), ours.pooled, atol=1e-4)


def test_a_real_clip_packed_by_the_codec(small, media, tmp_path):
    config, params = small
    folder = export(params, config, tmp_path / "clip")
    sequence = codecvit.pack_video(media / "bikes_h264_640x272.mp4", budget=512)
    with jax.default_matmul_precision("highest"):
        ours = codecvit.load(folder)(sequence)
    model = open_model(folder)
    for grid in (None, (16, 16)):
        with torch.no_grad():
            theirs = model(**torch_input(sequence, grid))
        np.testing.assert_allclose(theirs.last_hidden_state[0].numpy(), ours.tokens, atol=1e-4)
        np.testing.assert_allclose(theirs.pooler_output[0].numpy(), ours.pooled, atol=1e-4)


def test_round_trip_is_bit_equal(small, tmp_path):
    config, params = small
    export(params, config, tmp_path / "first")
    encoder = load(tmp_path / "first")
    same_trees(encoder.params, params)
    assert encoder.config == config
    assert main([str(tmp_path / "first"), "--out", str(tmp_path / "second")]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]


def test_every_field_of_the_configuration_survives(small, tmp_path):
    config = dataclasses.replace(small[0], rope_theta=500.0, layer_norm_eps=1e-5)
    folder = export(small[1], config, tmp_path / "fields", image_size=112)
    settings = json.loads((folder / "config.json").read_text())
    opened = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    for field, value in settings.items():
        if field not in ("auto_map", "dtype"):
            assert getattr(opened, field) == value, field
    assert opened.image_size == 112
    assert opened.num_attention_heads == 2
    assert read_checkpoint(folder).config == config
    assert open_model(folder).config.rope_theta == 500.0


def test_saving_and_opening_again_in_transformers(small, tmp_path):
    """What a fine-tuning run does; the copy opens in JAX too, also when it is split into shards."""
    config, params = small
    model = open_model(export(params, config, tmp_path / "before"))
    model.save_pretrained(tmp_path / "after", max_shard_size="100KB")
    assert (tmp_path / "after" / "model.safetensors.index.json").exists()
    same_trees(load(tmp_path / "after").params, params)
    again = open_model(tmp_path / "after").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again[name], tensor), name


def test_bfloat16_weights_and_float32_angles(small, make_sequence, tmp_path):
    config, params = small
    folder = export(params, config, tmp_path / "half", dtype="bfloat16")
    stored = load_file(folder / "model.safetensors")
    ours = read_safetensors(folder / "model.safetensors")
    for name, tensor in to_hf(params, config).items():
        assert stored[name].dtype == torch.bfloat16
        assert torch.equal(stored[name], torch.from_numpy(tensor).bfloat16()), name
        np.testing.assert_array_equal(ours[name], stored[name].float().numpy())
    arguments = torch_input(make_sequence(2))
    with torch.no_grad():
        half = open_model(folder, dtype=torch.bfloat16)
        assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
        out = half(**arguments)
        # The same rounded weights in float32: what is left is the rounding of the computation.
        exact = open_model(folder, dtype=torch.float32)(**arguments)
    assert (out.pooler_output.float() - exact.pooler_output).abs().max() < 0.1
    with jax.default_matmul_precision("highest"):
        jax_out = load(folder)(make_sequence(2))
    np.testing.assert_allclose(exact.pooler_output[0].numpy(), jax_out.pooled, atol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementation_is_honoured(small, tmp_path, attention):
    folder = export(*small[::-1], tmp_path / f"attention-{attention}")
    model = open_model(folder, attn_implementation=attention)
    assert model.config._attn_implementation == attention
    with torch.no_grad():
        out = model(torch.zeros(1, 3, 28, 28))
    assert out.last_hidden_state.shape == (1, 4, 64)


def test_two_exports_of_one_name_do_not_share_code(small, tmp_path):
    """transformers 5 finds the model class by the configuration; the version keeps them apart."""
    folders = [export(*small[::-1], tmp_path / side / "same_name") for side in "ab"]
    code = folders[1] / "modeling_onevision_encoder.py"
    code.write_text(code.read_text() + "\nOneVisionEncoderModel.edited = True\n")
    settings = folders[1] / "configuration_onevision_encoder.py"
    lines = settings.read_text().splitlines()
    lines = ['MODELING_VERSION = "1"' if "MODELING_VERSION =" in line else line for line in lines]
    settings.write_text("\n".join(lines))
    assert not hasattr(open_model(folders[0]), "edited")
    assert open_model(folders[1]).edited
    assert not hasattr(open_model(folders[0]), "edited")


def test_image_processor_opens_without_torchvision(small, tmp_path):
    """In a process where torchvision cannot be imported; from an image to its embedding."""
    folder = export(*small[::-1], tmp_path / "processor", image_size=56)
    Image.new("RGB", (80, 60), (10, 200, 30)).save(tmp_path / "image.png")
    script = """
import sys
sys.modules["torchvision"] = None
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
processor = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
inputs = processor(Image.open(sys.argv[2]), return_tensors="pt")
pixels, pooled = inputs["pixel_values"], model(**inputs).pooler_output
print(type(processor).__name__, list(pixels.shape), list(pooled.shape))
"""
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "image.png")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[0] == ("OneVisionEncoderImageProcessor [1, 3, 56, 56] [1, 64]")


def test_processor_settings_are_the_published_ones(small, tmp_path):
    folder = export(*small[::-1], tmp_path / "settings", image_size=448)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    assert settings["size"] == {"shortest_edge": 448}
    assert settings["crop_size"] == {"height": 448, "width": 448}
    assert settings["resample"] == 3
    assert settings["image_mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert settings["image_std"] == [0.26862954, 0.26130258, 0.27577711]
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    assert processor.size["shortest_edge"] == processor.crop_size["height"] == 448
    processor.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())
    assert {key: saved[key] for key in settings if key != "auto_map"} == {
        key: value for key, value in settings.items() if key != "auto_map"
    }


def test_folder_holds_these_files_and_a_card(small, tmp_path):
    folder = export(*small[::-1], tmp_path / "card", training={"optim": {"lr": 0.125}})
    assert {entry.name for entry in folder.iterdir()} == ENCODER_FILES
    assert not [entry for entry in tmp_path.iterdir() if entry.name != "card"]
    card = (folder / "README.md").read_text()
    assert '"lr": 0.125' in card
    assert "AutoModel.from_pretrained" in card
    assert "Training configuration" not in (
        (export(*small[::-1], tmp_path / "plain") / "README.md").read_text()
    )


def test_the_card_of_a_run_says_what_it_saw_and_reached(small, tmp_path):
    """From the work directory: metrics up to the checkpoint's step, counts of its record sets."""
    from codecvit.trainers.checkpoints import save_params

    records = tmp_path / "packed" / "codec"
    records.mkdir(parents=True)
    manifest = {"mode": "codec", "records": 1234, "tokens": {"sum": 56789}}
    (records / "manifest.json").write_text(json.dumps(manifest))
    source = {"records": f"{records}+{tmp_path / 'gone'}", "batch_size": 8}
    config = {"model": dataclasses.asdict(small[0]), "sources": {"video": source}}
    save_params(tmp_path / "run" / "checkpoints" / "20", small[1], {"config": config})
    rows = [
        {"step": 10, "time": 1.0, "train/loss": 3.0, "probe/digit/knn_top1": 0.25},
        {"step": 20, "time": 2.0, "train/loss": 1.5, "train/bad": float("nan"), "perf/mfu": 0.5},
        {"step": 30, "time": 3.0, "train/loss": 0.5},
    ]
    lines = [json.dumps(row) for row in rows] + ['{"step": 40, "tr']
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines))
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Trained by CodecViT" in card
    assert "## Metrics at step 20\n" in card
    assert "| train/loss | 1.5 |" in card
    assert "| probe/digit/knn_top1 | 0.25 |" in card
    assert "train/bad |" not in card and "perf/mfu" not in card
    assert "| video | codec | codec | 1,234 | 56,789 |" in card
    assert "| gone |" not in card
    assert '"batch_size": 8' in card


def test_an_earlier_export_is_replaced_and_another_folder_is_not(small, tmp_path):
    config, params = small
    out = export(params, config, tmp_path / "out")
    other = jax.tree.map(lambda leaf: 2 * leaf, params)
    export(other, config, out)
    same_trees(load(out).params, other)

    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out.*notes\.txt.*--overwrite"):
        export(params, config, out)
    same_trees(load(out).params, other)
    export(params, config, out, overwrite=True)
    assert {entry.name for entry in out.iterdir()} == ENCODER_FILES
    same_trees(load(out).params, params)

    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        export(params, config, tmp_path / "file", overwrite=True)


def test_a_failed_export_leaves_nothing(small, tmp_path):
    """The write fails in the middle: the earlier export is still there, and no other folder."""
    config, params = small
    out = export(params, config, tmp_path / "out")
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(TypeError, match="JSON serializable"):
        export(params, config, out, training={"bad": object()})
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert (out / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype = 'int8'"),
        ({"image_size": 100}, "image_size = 100.*patch side 14"),
        ({"image_size": 0}, "image_size = 0"),
    ],
)
def test_arguments_out_of_range_are_named(small, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(*small[::-1], tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_export_verb(small, tmp_path, capsys):
    assert main([str(tmp_path / "absent"), "--out", str(tmp_path / "out")]) == 1
    assert str(tmp_path / "absent") in capsys.readouterr().err
    folder = export(*small[::-1], tmp_path / "verb")
    out = tmp_path / "new" / "out"
    arguments = [str(folder), "--out", str(out), "--dtype", "bfloat16", "--image-size", "56"]
    command = [sys.executable, "-m", "codecvit", "export", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert str(out) in result.stdout
    assert json.loads((out / "config.json").read_text())["image_size"] == 56
    assert read_safetensors(out / "model.safetensors").keys() == to_hf(*small[::-1]).keys()
