"""Folders and checkpoints: what is imported is exported byte by byte, and training goes on."""

import dataclasses
import json
import logging

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint
import pytest
import torch
from safetensors.numpy import load_file, save_file

import codecvit
from codecvit.convert.export import export
from codecvit.convert.export_verb import main as export_verb
from codecvit.convert.import_hf import main as import_verb
from codecvit.convert.openclip.names import POSITIONS, position_code, to_openclip
from codecvit.convert.openclip.read import is_clip, read_clip
from codecvit.convert.openclip.settings import ClipOrigin, Parts, to_openclip_config
from codecvit.convert.openclip.write import export_clip
from codecvit.data.tokenizers import open_tokenizer
from codecvit.models import ViTConfig
from codecvit.trainers.checkpoints import Checkpoints, initialise
from codecvit.trainers.run_config import CheckpointConfig, InitConfig

from .helpers import in_their_jax, same_trees

SIZE = 32
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


def publish(folder, parts, params, vocabulary, dtype="float32", kind="safetensors"):
    """A folder as OpenVision publishes one: its own configuration, another library's positions."""
    folder.mkdir()
    content = to_openclip_config(parts, ClipOrigin(image_size=SIZE))
    text = content["model_cfg"]["text_cfg"]
    del text["tokenizer_mode"]
    text |= {
        "hf_tokenizer_name": "bert-base-uncased",
        "tokenizer_kwargs": {"strip_sep_token": True},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    words = vocabulary.read_text().replace("[bos]", "[unused0]").replace("[eos]", "[unused1]")
    (folder / "vocab.txt").write_text(words)
    (folder / "tokenizer_config.json").write_text('{"cls_token": "[CLS]", "pad_token": "[PAD]"}')
    tensors = to_openclip(params, parts)
    if parts.bias:  # as OpenCLIP stores them when they are not scalars
        tensors |= {name: tensors[name].reshape(1) for name in ("logit_scale", "logit_bias")}
    code = position_code(SIZE // 8, SIZE // 8, parts.vision.width)
    tensors[POSITIONS] = np.nextafter(code, np.float32(2))
    tensors = {name: t.astype(DTYPES[dtype]) for name, t in tensors.items()}
    if kind == "safetensors":
        save_file(tensors, folder / "open_clip_model.safetensors")
    else:
        as_torch = {
            name: torch.from_numpy(t.astype(np.float32)).to(getattr(torch, dtype))
            for name, t in tensors.items()
        }
        torch.save(as_torch, folder / "open_clip_pytorch_model.bin")
    return folder


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


def test_a_pickle_with_code_is_not_run(make_parts, make_weights, vocabulary, tmp_path, capsys):
    parts = make_parts()
    folder = publish(tmp_path / "theirs", parts, make_weights(parts), vocabulary, kind="bin")

    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    torch.save({"visual.proj": Code()}, folder / "open_clip_pytorch_model.bin")
    assert import_verb([str(folder), "--out", str(tmp_path / "checkpoint")]) == 1
    assert "holds no plain tensors" in capsys.readouterr().err
    assert not (tmp_path / "written").exists() and not (tmp_path / "checkpoint").exists()


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


@pytest.fixture
def orbax_folder(make_parts, make_weights, tmp_path):
    """(folder, parts, params): what OpenVision's trainer saves, by Orbax's manager."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    parts = make_parts(decoder="queries")
    params = make_weights(parts)
    flat = in_their_jax(params, parts, heads_axis=True)
    tree = {}
    for name, array in flat.items():
        *parents, last = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = array
    folder = tmp_path / "theirs" / "jax_orbax_weight"
    moments = jax.tree.map(np.zeros_like, tree)
    manager = orbax.checkpoint.CheckpointManager(folder / "checkpoint.npz")
    for step in (9, 10):
        state = {"params": tree, "opt": [{"count": np.int32(step), "mu": moments}, None]}
        manager.save(step, args=orbax.checkpoint.args.StandardSave(state))
    manager.close()
    return folder, parts, params


def test_jax_weights_are_recognised_wherever_they_are_named(orbax_folder):
    folder, parts, params = orbax_folder
    for path in (folder.parent, folder, folder / "checkpoint.npz" / "10"):
        assert is_clip(path)
        found = read_clip(path)
        assert found.parts == parts
        same_trees(found.params, params)


def test_jax_weights_become_a_checkpoint_and_a_folder(orbax_folder, vocabulary, tmp_path, capsys):
    folder, parts, params = orbax_folder
    out = tmp_path / "checkpoint"
    assert import_verb([str(folder), "--out", str(out)]) == 0
    same_trees(read_clip(out).params, params)
    assert export_verb([str(out), "--out", str(tmp_path / "back"), "--image-size", "32"]) == 1
    assert "tokenizer is not known" in capsys.readouterr().err
    arguments = [str(out), "--out", str(tmp_path / "back"), "--image-size", "32"]
    arguments += ["--format", "openclip", "--tokenizer", str(vocabulary)]
    assert export_verb(arguments) == 0
    same_trees(read_clip(tmp_path / "back").params, params)


def test_their_folder_around_the_jax_weights_says_the_image_size(
    orbax_folder, make_parts, vocabulary, tmp_path
):
    folder, parts, params = orbax_folder
    both = publish(
        tmp_path / "both",
        make_parts(),
        {k: v for k, v in params.items() if k != "decoder"},
        vocabulary,
    )
    (folder).rename(both / "jax_orbax_weight")
    assert read_clip(both).parts.decoder is None  # the PyTorch weights
    found = read_clip(both / "jax_orbax_weight")
    assert found.parts == parts and found.origin.image_size == SIZE


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (("vision_cfg", "no_ln_pre"), False, "vision_cfg.no_ln_pre = False, only True"),
        (("vision_cfg", "pool_type"), "tok", "pool_type = 'tok', only 'avg'"),
        (("vision_cfg", "qk_norm"), True, "qk_norm = True is not supported"),
        (("text_cfg", "no_causal_mask"), None, "no_causal_mask = None, only True"),
        (("text_cfg", "act_kwargs"), None, "act_kwargs = None, only"),
        (("text_cfg", "vocab_size"), "many", "vocab_size = 'many' must be a whole number"),
        (("vision_cfg", "image_size"), 40, r"shape \[17, 48\], image_size = 40 needs \[26, 48\]"),
        (("vision_cfg", "layers"), 3, "missing, the first 'visual.transformer.resblocks.2"),
    ],
)
def test_what_our_models_do_not_compute_is_refused(
    make_parts, make_weights, vocabulary, tmp_path, key, value, message
):
    parts = make_parts()
    folder = publish(tmp_path / "theirs", parts, make_weights(parts), vocabulary)
    content = json.loads((folder / "open_clip_config.json").read_text())
    content["model_cfg"][key[0]][key[1]] = value
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_clip(folder)


def test_learned_positions_and_other_colours_are_refused(
    make_parts, make_weights, vocabulary, tmp_path
):
    parts = make_parts()
    folder = publish(tmp_path / "theirs", parts, make_weights(parts), vocabulary)
    file = folder / "open_clip_model.safetensors"
    tensors = load_file(file)
    learned = tensors[POSITIONS] + np.float32(0.01)
    save_file({**tensors, POSITIONS: learned}, file)
    with pytest.raises(ValueError, match="learned positions are not supported"):
        read_clip(folder)
    swapped = tensors[POSITIONS].copy()
    half = parts.vision.width // 2  # rows before columns
    save_file({**tensors, POSITIONS: np.roll(swapped, half, axis=1)}, file)
    with pytest.raises(ValueError, match="learned positions are not supported"):
        read_clip(folder)
    save_file(tensors, file)
    content = json.loads((folder / "open_clip_config.json").read_text())
    content["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"mean = \[0.5, 0.5, 0.5\], but our tower"):
        read_clip(folder)


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


def test_the_verb_refuses_what_does_not_go_together(
    small, make_parts, make_weights, vocabulary, tmp_path, capsys
):
    config, params = small
    encoder = str(export(params, config, tmp_path / "encoder"))
    parts = make_parts()
    folder = publish(tmp_path / "theirs", parts, make_weights(parts), vocabulary)
    for arguments, message in (
        ([encoder, "--format", "openclip"], "holds an encoder without texts"),
        ([encoder, "--tokenizer", str(vocabulary)], "reads no texts, leave it out"),
        ([str(tmp_path / "none"), "--format", "openclip"], "none is no folder"),
        ([str(folder), "--onnx"], "only encoders are written as a graph"),
        ([str(folder), "--ema"], "holds no moving average"),
        ([str(folder), "--image-size", "33"], "must be a multiple of the patch side 8"),
    ):
        assert export_verb([*arguments, "--out", str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_wrong_wishes_are_named(make_parts, make_weights, vocabulary, tmp_path):
    parts = make_parts()
    params, origin = make_weights(parts), ClipOrigin(image_size=SIZE)
    with pytest.raises(ValueError, match="image_size = 30 must be a multiple of the patch side 8"):
        export_clip(params, parts, tmp_path / "x", origin=ClipOrigin(image_size=30))
    with pytest.raises(ValueError, match="shard_size: OpenCLIP reads one weight file"):
        export_clip(
            params, parts, tmp_path / "x", layout="openclip", origin=origin, shard_size="1MB"
        )
    fewer = dataclasses.replace(parts.text, vocab_size=20)
    with pytest.raises(ValueError, match="was trained with another one"):
        export_clip(
            params,
            dataclasses.replace(parts, text=fewer),
            tmp_path / "x",
            origin=origin,
            tokenizer=open_tokenizer(vocabulary),
        )
    alone = Parts(parts.vision)
    with pytest.raises(ValueError, match="no models without a text tower"):
        export_clip(
            {"encoder": params["encoder"]}, alone, tmp_path / "x", layout="openclip", origin=origin
        )
    out = export_clip({"encoder": params["encoder"]}, alone, tmp_path / "alone", origin=origin)
    same_trees(read_clip(out).params, {"encoder": params["encoder"]})
    with pytest.raises(ValueError, match="holds no image-text model"):
        read_clip(tmp_path)
