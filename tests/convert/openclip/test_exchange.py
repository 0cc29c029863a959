"""Folders and checkpoints: what is imported is exported byte by byte, and training goes on."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import codecvit
from codecvit.convert.export_verb import main as export_verb
from codecvit.convert.import_hf import main as import_verb
from codecvit.convert.openclip.read import is_clip, read_clip
from codecvit.convert.openclip.settings import ClipOrigin, Parts
from codecvit.convert.openclip.write import export_clip
from codecvit.data.tokenizers import open_tokenizer
from codecvit.models import ViTConfig
from codecvit.trainers.checkpoint_reading import initialise
from codecvit.trainers.checkpoints import Checkpoints
from codecvit.trainers.run_config import CheckpointConfig, InitConfig

from .helpers import DTYPES, SIZE, publish, same_trees


def stored(file):
    return {name: (t.dtype, t.shape, t.tobytes()) for name, t in load_file(file).items()}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_export_of_an_import_gives_the_same_bytes(
    make_parts, make_weights, vocabulary, tmp_path, dtype, bias
):
    parts = make_parts(bias=bias)
    folder = publish(tmp_path / "theirs", parts, make_weights(parts), vocabulary, dtype)
    assert import_verb([str(folder), "--out", str(tmp_path / "checkpoint")]) == 0
    arguments = [str(tmp_path / "checkpoint"), "--out", str(tmp_path / "back")]
    assert export_verb([*arguments, "--format", "openclip"]) == 0
    file = "open_clip_model.safetensors"
    assert stored(tmp_path / "back" / file) == stored(folder / file)
    ours = json.loads((tmp_path / "back" / "open_clip_config.json").read_text())
    theirs = json.loads((folder / "open_clip_config.json").read_text())
    assert ours["preprocess_cfg"] == theirs["preprocess_cfg"]
    assert ours["model_cfg"]["vision_cfg"] == theirs["model_cfg"]["vision_cfg"]
    assert ours["model_cfg"]["text_cfg"]["tokenizer_mode"] == "clips"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pickle_gives_the_same_as_safetensors(
    make_parts, make_weights, vocabulary, tmp_path, dtype
):
    parts = make_parts()
    params = make_weights(parts)
    plain = publish(tmp_path / "plain", parts, params, vocabulary, dtype)
    pickled = publish(tmp_path / "pickled", parts, params, vocabulary, dtype, "bin")
    one, other = read_clip(plain), read_clip(pickled)
    same_trees(other.params, one.params)
    kept = dataclasses.replace(one.origin, tokenizer=other.origin.tokenizer)
    assert (other.parts, other.origin) == (one.parts, kept)


def test_training_continues_from_it(make_parts, make_weights, vocabulary, tmp_path, capsys):
    parts = make_parts()
    params = make_weights(parts)
    folder = publish(tmp_path / "theirs", parts, params, vocabulary)
    out = tmp_path / "checkpoint"
    assert import_verb([str(folder), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"txt=SIZE,init={out}" in printed and "('image_head','text','logit_scale',)" in printed
    state = {"params": jax.device_put(make_weights(parts, seed=1))}
    wanted = InitConfig(checkpoint=str(out), parts=("image_head", "text", "logit_scale"))
    same_trees(initialise(wanted, state)["params"], params)
    with_decoder = make_parts(decoder="queries")
    state = {"params": jax.device_put(make_weights(with_decoder, seed=1))}
    wanted = dataclasses.replace(wanted, parts=(*wanted.parts, "decoder"))
    with pytest.raises(ValueError, match=r"params/decoder/.*has nothing"):
        initialise(wanted, state)


def test_a_run_s_checkpoint_is_exported_with_its_settings(
    make_parts, make_weights, vocabulary, tmp_path, capsys
):
    """What `codecvit train-pairs` leaves: other arrays, a configuration, metrics, an average."""
    parts = make_parts(decoder="causal")
    params, averaged = make_weights(parts), make_weights(parts, seed=1)["encoder"]
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig())
    state = {
        "params": params,
        "opt_state": {"mu": {"text": np.ones(3, np.float32)}},
        "ema": averaged,
        "step": np.int32(7),
    }
    packed = tmp_path / "packed"
    packed.mkdir()
    manifest = {"mode": "image", "records": 1234, "tokens": {"sum": 56789}}
    (packed / "manifest.json").write_text(json.dumps(manifest))
    config = {
        "model": parts.settings(),
        "sources": {
            "low": {"image_size": 24, "pairs": f"records:{packed}+webdataset:{tmp_path}/*.tar"},
            "high": {"image_size": 40, "pairs": f"table:{tmp_path}/rows.parquet"},
        },
        "tokenizer": str(vocabulary),
    }
    checkpoints.save(7, jax.device_put(state), {"config": config})
    checkpoints.close()
    metrics = {"step": 7, "train/loss": 1.5, "zero_shot/digits/top1": 0.25, "perf/mfu": 0.1}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    run, out = str(tmp_path / "run"), tmp_path / "out"
    assert is_clip(run)
    assert export_verb([run, "--out", str(out), "--format", "openclip"]) == 0
    found = read_clip(out)
    same_trees(found.params, params)
    assert found.origin.image_size == 40 and found.origin.resize_mode == "shortest"
    card = (out / "README.md").read_text()
    assert "| low | packed | image | 1,234 | 56,789 |" in card
    assert "| zero_shot/digits/top1 | 0.25 |" in card and "perf/" not in card
    assert "| train/loss | 1.5 |" in card and "decoder.safetensors" in card
    model = codecvit.load_clip(run)
    np.testing.assert_array_equal(
        model.embed_texts(["a dog"]), codecvit.load_clip(out).embed_texts(["a dog"])
    )
    same_trees(codecvit.load_clip(run, ema=True).params, {**params, "encoder": averaged})
    with pytest.raises(ValueError, match="codecvit.load_clip opens it"):
        codecvit.load(run)
    assert export_verb([run, "--out", str(out), "--tokenizer", "/nowhere.txt"]) == 1
    assert "/nowhere.txt does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["openclip", "hf"])
@pytest.mark.parametrize("decoder", [None, "queries", "causal"])
def test_every_export_opens_again(make_parts, make_weights, vocabulary, tmp_path, layout, decoder):
    parts = make_parts(decoder=decoder)
    params = make_weights(parts)
    origin = ClipOrigin(image_size=SIZE)
    tokenizer = open_tokenizer(vocabulary)
    out = export_clip(
        params, parts, tmp_path / "out", layout=layout, origin=origin, tokenizer=tokenizer
    )
    assert is_clip(out)
    assert (out / "decoder.safetensors").is_file() == (decoder is not None)
    found = read_clip(out)
    same_trees(found.params, params)
    assert found.parts == parts
    assert found.origin == dataclasses.replace(origin, tokenizer=str(out / "vocab.txt"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_model_on_our_encoder_keeps_all_its_parts(
    make_parts, make_weights, make_sequence, vocabulary, tmp_path
):
    vision = ViTConfig(width=64, depth=2, num_heads=2, mlp_dim=96, patch=14)
    parts = dataclasses.replace(make_parts(), vision=vision)
    params = make_weights(parts)
    origin = ClipOrigin(image_size=28)
    with pytest.raises(ValueError, match="rotary: export it with --format hf"):
        export_clip(params, parts, tmp_path / "no", layout="openclip", origin=origin)
    tokenizer = open_tokenizer(vocabulary)
    out = export_clip(params, parts, tmp_path / "out", origin=origin, tokenizer=tokenizer)
    found = read_clip(out)
    same_trees(found.params, params)
    assert found.parts == parts and found.origin.image_size == 28
    assert found.origin.tokenizer == str(out / "vocab.txt")
    sequence = make_sequence(1, length=20)
    tokens = codecvit.load(out)(sequence).tokens
    assert import_verb([str(out), "--out", str(tmp_path / "checkpoint")]) == 0
    same_trees(read_clip(tmp_path / "checkpoint").params, params)
    np.testing.assert_array_equal(codecvit.load(tmp_path / "checkpoint")(sequence).tokens, tokens)


@pytest.mark.parametrize("prefix", ["visual.", ""])
def test_an_image_tower_alone_is_imported(
    make_parts, make_weights, vocabulary, tmp_path, capsys, prefix
):
    """As OpenVision 2 is published: a text_cfg of no meaning, no preprocessing, no texts."""
    parts = make_parts()
    params = make_weights(parts)
    folder = publish(tmp_path / "theirs", parts, params, vocabulary)
    content = json.loads((folder / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"] = {"context_length": 77, "vocab_size": 49408, "heads": 8}
    content["model_cfg"]["vision_cfg"]["output_tokens"] = True
    del content["preprocess_cfg"]
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    file = folder / "open_clip_model.safetensors"
    tower = {n: t for n, t in load_file(file).items() if n.startswith("visual.")}
    save_file({prefix + name.removeprefix("visual."): t for name, t in tower.items()}, file)
    out = tmp_path / "checkpoint"
    assert import_verb([str(folder), "--out", str(out)]) == 0
    assert "visual.proj [48, 24] leads nowhere" in capsys.readouterr().out
    found = read_clip(out)
    same_trees(found.params, {"encoder": params["encoder"]})
    assert found.parts == Parts(parts.vision)
    np.testing.assert_array_equal(found.kept["visual.proj"], tower["visual.proj"])
    state = {"params": jax.device_put(make_weights(make_parts(decoder="causal"), seed=1))}
    made = initialise(InitConfig(checkpoint=str(out)), state)
    same_trees(made["params"]["encoder"], params["encoder"])
    assert export_verb([str(out), "--out", str(tmp_path / "hf")]) == 0
    same_trees(read_clip(tmp_path / "hf").params, found.params)
    half = {**tower, "ln_final.weight": np.ones(32, np.float32)}
    save_file(half, file)
    with pytest.raises(ValueError, match="unknown tensor.s., the first 'ln_final.weight'"):
        read_clip(folder)
