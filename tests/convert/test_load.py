"""`codecvit.load` opens what training and export leave, and says clearly what it cannot open."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from codecvit.convert.export import export
from codecvit.convert.load import load, read_checkpoint
from codecvit.convert.names import to_hf


@pytest.fixture
def exported(small, tmp_path):
    return export(small[1], small[0], tmp_path / "exported")


@pytest.fixture
def workdir(small, tmp_path):
    """A work directory with checkpoints 1 and 2; the second holds the parameters of `small`."""
    from codecvit.trainers.checkpoints import Checkpoints
    from codecvit.trainers.run_config import CheckpointConfig

    config, params = small
    model = {**dataclasses.asdict(config), "remat": "full", "attention_impl": "xla"}
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig(keep=2))
    for step in (1, 2):
        scaled = jax.tree.map(lambda leaf, step=step: leaf * np.float32(step / 2), params)
        state = {
            "params": {"encoder": scaled, "heads": {"main": {"centres": jnp.zeros((8, 64))}}},
            "opt_state": {},
            "step": jnp.int32(step),
            "skipped": jnp.int32(0),
            "ema": jax.tree.map(lambda leaf: leaf * np.float32(3), scaled),
        }
        checkpoints.save(step, state, {"config": {"model": model, "seed": 5}})
    checkpoints.close()
    return tmp_path / "run"


def same_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_work_directory_and_one_step(small, workdir):
    encoder = load(workdir)
    same_trees(encoder.params, small[1])
    assert encoder.config == small[0]  # how the run was executed does not follow
    first = load(workdir / "checkpoints" / "1")
    same_trees(first.params, jax.tree.map(lambda leaf: leaf / 2, small[1]))
    assert read_checkpoint(workdir).training["seed"] == 5


def test_the_moving_average_can_be_opened_instead(small, workdir, exported):
    same_trees(load(workdir, ema=True).params, jax.tree.map(lambda leaf: leaf * 3, small[1]))
    with pytest.raises(ValueError, match="is an exported folder: it holds no moving average"):
        load(exported, ema=True)


def test_checkpoint_and_its_export_encode_alike(small, workdir, exported, make_sequence):
    sequence = make_sequence(3, length=70)
    ours, theirs = load(workdir)(sequence), load(exported)(sequence)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.pooled, theirs.pooled)
    assert ours.tokens.shape == (70, 64)


def test_runs_without_torch(exported):
    script = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
import codecvit
print(codecvit.load(sys.argv[1]).config.width)
"""
    command = [sys.executable, "-c", script, str(exported)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["64"]


def test_sharded_folder(small, exported):
    tensors = to_hf(small[1], small[0])
    (exported / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
    for part, members in parts.items():
        save_file({name: tensors[name] for name in members}, exported / part)
    index = {name: part for part, members in parts.items() for name in members}
    (exported / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    same_trees(load(exported).params, small[1])
    (exported / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-2\.safetensors does not exist"):
        load(exported)
    outside = dict.fromkeys(names, "../elsewhere/model.safetensors")
    (exported / "model.safetensors.index.json").write_text(json.dumps({"weight_map": outside}))
    with pytest.raises(ValueError, match=r"'\.\./elsewhere/model\.safetensors' is no plain file"):
        load(exported)


def test_what_is_no_encoder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent is no folder: expected a work directory"):
        load(tmp_path / "absent")
    (tmp_path / "photo.jpg").write_text("")
    with pytest.raises(ValueError, match=r"found: photo\.jpg\).*Hugging Face folder"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"photo\.jpg is no folder"):
        load(tmp_path / "photo.jpg")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="checkpoint"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "siglip"),
        ("hidden_act", "gelu_pytorch_tanh"),
        ("layer_norm_type", "rms_norm"),
        ("use_head", False),
        ("num_channels", 1),
        ("hidden_size", "64"),
        ("patch_size", None),
    ],
)
def test_a_configuration_of_something_else_is_refused(exported, field, value):
    path = exported / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ValueError, match=rf"config\.json: {field} = {value!r}"):
        load(exported)


def test_damaged_files_are_named(small, exported):
    weights = exported / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is no safetensors file"):
        load(exported)
    tensors = to_hf(small[1], small[0])
    save_file(tensors | {"head.probe": np.zeros((1, 1, 64), np.int32)}, weights)
    with pytest.raises(ValueError, match=r"'head\.probe' is I32"):
        load(exported)
    del tensors["head.probe"]
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"exported: .*missing.*'head\.probe'"):
        load(exported)
    weights.unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor"):
        load(exported)
    (exported / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON file"):
        load(exported)
