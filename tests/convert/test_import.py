"""A published folder becomes a checkpoint: opened, continued from, and exported byte by byte."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import codecvit
from codecvit.convert.export import export
from codecvit.convert.export_verb import main as export_verb
from codecvit.convert.import_hf import import_hf, main, model_flags
from codecvit.convert.load import read_checkpoint
from codecvit.convert.names import to_hf
from codecvit.models import ViTConfig
from codecvit.trainers.checkpoint_reading import head_centres, initialise, require_same_encoder
from codecvit.trainers.run_config import InitConfig

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


def publish(folder, config, params, dtype, shards=1):
    """A folder as the published ones are: the fields of their config.json, and nothing of ours."""
    folder.mkdir()
    settings = {
        "architectures": ["OneVisionEncoderModel"],
        "model_type": "onevision_encoder",
        "auto_map": {"AutoModel": "modeling_onevision_encoder.OneVisionEncoderModel"},
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_channels": 3,
        "patch_size": config.patch,
        "image_size": 448,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-06,
        "layer_norm_type": "layer_norm",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "rope_theta": 10000.0,
        "rope_temporal_size": 64,
        "use_head": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.1",
    }
    (folder / "config.json").write_text(json.dumps(settings))
    tensors = {name: t.astype(DTYPES[dtype]) for name, t in to_hf(params, config).items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for i, names in enumerate(np.array_split(sorted(tensors), shards)):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({str(n): tensors[n] for n in names}, folder / file)
        weight_map |= {str(n): file for n in names}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def stored(folder):
    """name -> (dtype, shape, bytes) of every tensor of a folder, whatever its files."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return {name: (t.dtype, t.shape, t.tobytes()) for name, t in tensors.items()}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_export_of_an_import_gives_the_same_bytes(small, tmp_path, dtype, shards):
    folder = publish(tmp_path / "published", *small, dtype, shards)
    assert main([str(folder), "--out", str(tmp_path / "checkpoint")]) == 0
    arguments = [str(tmp_path / "checkpoint"), "--out", str(tmp_path / "back")]
    assert export_verb(arguments) == 0
    assert stored(tmp_path / "back") == stored(folder)
    theirs, ours = (
        json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "back")
    )
    assert ours["dtype"] == dtype
    kept = theirs.keys() - {"torch_dtype", "transformers_version", "auto_map"}
    assert {field: ours[field] for field in kept} == {field: theirs[field] for field in kept}


def test_load_opens_it_with_the_published_numbers(small, make_sequence, tmp_path):
    folder = publish(tmp_path / "published", *small, "bfloat16")
    import_hf(folder, tmp_path / "checkpoint")
    imported, direct = codecvit.load(tmp_path / "checkpoint"), codecvit.load(folder)
    assert imported.config == direct.config == small[0]
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), small[1])
    jax.tree.map(np.testing.assert_array_equal, imported.params, rounded)
    assert {leaf.dtype for leaf in jax.tree.leaves(imported.params)} == {np.dtype(np.float32)}
    sequence = make_sequence(1, length=40)
    np.testing.assert_array_equal(imported(sequence).tokens, direct(sequence).tokens)


def test_training_continues_from_it(small, tmp_path):
    from codecvit.trainers.pretrain_step import init_state

    config, params = small
    out = tmp_path / "checkpoint"
    import_hf(publish(tmp_path / "published", config, params, "float32"), out)
    state = init_state(run_config(config), jax.random.key(0))
    made = initialise(InitConfig(checkpoint=str(out)), state)
    jax.tree.map(np.testing.assert_array_equal, made["params"]["encoder"], params)
    assert int(made["step"]) == 0
    with pytest.raises(ValueError, match=r"params/heads/main/centres: .* has nothing"):
        initialise(InitConfig(checkpoint=str(out), parts=("heads/main",)), state)
    with pytest.raises(ValueError, match="holds no moving average"):
        initialise(InitConfig(checkpoint=str(out), ema=True), state)
    with pytest.raises(ValueError, match="no head 'main'; it has none"):
        head_centres(out, "main")
    deeper = init_state(run_config(dataclasses.replace(config, depth=3)), jax.random.key(0))
    with pytest.raises(ValueError, match=r"blocks/.*the run needs \(3, .*checkpoint has \(2, "):
        initialise(InitConfig(checkpoint=str(out)), deeper)


def test_what_shapes_do_not_show_is_compared(small, tmp_path):
    config, out = small[0], tmp_path / "checkpoint"
    import_hf(publish(tmp_path / "published", *small, "float32"), out)
    require_same_encoder(str(out), config)
    for field, value in (("num_heads", 1), ("rope_theta", 500.0), ("layer_norm_eps", 1e-5)):
        other = dataclasses.replace(config, **{field: value})
        with pytest.raises(ValueError, match=rf"with {field} = .*this run has {field} = {value}"):
            require_same_encoder(str(out), other)


def run_config(model):
    from codecvit.trainers.pretrain_config import PretrainConfig

    return PretrainConfig.from_dict(
        {
            "model": dataclasses.asdict(model),
            "sources": {"video": {"records": "none", "batch_size": 8, "budget": 16}},
            "heads": {"main": {"num_classes": 8}},
            "total_steps": 2,
        }
    )


def test_the_printed_command_names_the_model(small, tmp_path, capsys):
    main(
        [
            str(publish(tmp_path / "published", *small, "float16")),
            "--out",
            str(tmp_path / "checkpoint"),
        ]
    )
    printed = capsys.readouterr().out
    assert "(float16)" in printed
    assert f"--config.init.checkpoint={tmp_path / 'checkpoint'} --config.model.width=64" in printed
    assert model_flags(ViTConfig.from_variant("L/14")) == "--config.model.variant=L/14"
    other = ViTConfig.from_variant("B/16", rope_theta=500.0, depth=3)
    assert model_flags(other) == (
        "--config.model.width=768 --config.model.depth=3 --config.model.num_heads=12 "
        "--config.model.mlp_dim=3072 --config.model.patch=16 --config.model.rope_theta=500.0"
    )


def test_settings_of_the_folder_are_kept_and_can_be_overridden(small, tmp_path):
    folder = publish(tmp_path / "published", *small, "float32")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"rope_temporal_size": None, "image_size": 112, "rope_theta": 500.0}
    (folder / "config.json").write_text(json.dumps(settings))
    out = str(tmp_path / "checkpoint")
    import_hf(folder, out)
    assert export_verb([out, "--out", str(tmp_path / "same")]) == 0
    same = json.loads((tmp_path / "same" / "config.json").read_text())
    assert (same["rope_temporal_size"], same["image_size"], same["rope_theta"]) == (None, 112, 500)
    arguments = ["--dtype", "bfloat16", "--image-size", "56"]
    assert export_verb([out, "--out", str(tmp_path / "other"), *arguments]) == 0
    other = json.loads((tmp_path / "other" / "config.json").read_text())
    assert (other["dtype"], other["image_size"]) == ("bfloat16", 56)
    assert {dtype for dtype, _, _ in stored(tmp_path / "other").values()} == {
        np.dtype(ml_dtypes.bfloat16)
    }


def test_a_mixture_of_dtypes_is_remembered_as_float32(small, tmp_path):
    folder = publish(tmp_path / "published", *small, "bfloat16")
    tensors = load_file(folder / "model.safetensors")
    tensors["head.norm.weight"] = to_hf(*small[::-1])["head.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    import_hf(folder, tmp_path / "checkpoint")
    checkpoint = read_checkpoint(tmp_path / "checkpoint")
    assert checkpoint.origin.dtype == "float32"
    np.testing.assert_array_equal(
        checkpoint.params["head"]["norm"]["scale"], small[1]["head"]["norm"]["scale"]
    )


def drop(tensors):
    del tensors["encoder.layers.1.mlp.fc2.bias"]


def add(tensors):
    tensors["head.norm.bias"] = np.zeros(64, np.float32)


def misshape(tensors):
    tensors["head.probe"] = np.zeros((1, 64), np.float32)


def double(tensors):
    tensors["head.probe"] = tensors["head.probe"].astype(np.float64)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, r"missing.*'encoder\.layers\.1\.mlp\.fc2\.bias'"),
        (add, r"unknown.*'head\.norm\.bias'"),
        (misshape, r"'head\.probe' has shape \[1, 64\].*\[1, 1, 64\]"),
        (double, r"'head\.probe' is F64"),
    ],
)
def test_a_wrong_tensor_is_named_and_nothing_is_written(small, tmp_path, capsys, damage, message):
    folder = publish(tmp_path / "published", *small, "float32")
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        import_hf(folder, tmp_path / "checkpoint")
    assert main([str(folder), "--out", str(tmp_path / "checkpoint")]) == 1
    assert str(folder) in capsys.readouterr().err
    assert not (tmp_path / "checkpoint").exists()


def test_an_index_that_does_not_fit_its_shards_is_named(small, tmp_path):
    folder = publish(tmp_path / "published", *small, "float32", shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    file = index["weight_map"].pop("head.probe")
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"{file}: 1 .*'head\.probe' is in the file only"):
        import_hf(folder, tmp_path / "checkpoint")
    index["weight_map"] |= {"head.probe": file, "head.extra": file}
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"{file}: 1 .*'head\.extra' is in the index only"):
        import_hf(folder, tmp_path / "checkpoint")
    path.write_text("{}")
    with pytest.raises(ValueError, match="no weight_map"):
        import_hf(folder, tmp_path / "checkpoint")


def test_what_is_no_such_folder_is_refused(small, tmp_path):
    folder = publish(tmp_path / "published", *small, "float32")
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there exists"):
        import_hf(folder, tmp_path / "there")
    with pytest.raises(ValueError, match=r"there has no config\.json"):
        import_hf(tmp_path / "there", tmp_path / "out")
    (tmp_path / "there" / "config.json").write_text('{"model": {}}')
    with pytest.raises(ValueError, match="no model_type"):
        import_hf(tmp_path / "there", tmp_path / "out")
    settings = json.loads((folder / "config.json").read_text()) | {"use_head": False}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="use_head = False, only True is supported"):
        import_hf(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_import_is_noticed(small, tmp_path):
    out = tmp_path / "checkpoint"
    import_hf(publish(tmp_path / "published", *small, "float32"), out)
    (out / "encoder" / "manifest.ocdbt").unlink()
    with pytest.raises(ValueError, match="encoder"):
        codecvit.load(out)


def test_an_exported_folder_comes_back_too(small, tmp_path):
    folder = export(small[1], small[0], tmp_path / "exported", dtype="float16", image_size=56)
    import_hf(folder, tmp_path / "checkpoint")
    assert export_verb([str(tmp_path / "checkpoint"), "--out", str(tmp_path / "again")]) == 0
    for file in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
