"""Weight files: shards as transformers cuts and names them, and sizes as it reads them."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoModel

from codecvit.convert.export import export
from codecvit.convert.export_verb import main as export_verb
from codecvit.convert.folder import ENCODER_FILES
from codecvit.convert.names import to_hf
from codecvit.convert.weights import parse_size, read_weights, write_weights


def test_shards_are_those_of_transformers(small, tmp_path):
    """The same names, index fields and limits as `save_pretrained(max_shard_size=...)` gives."""
    whole = export(*small[::-1], tmp_path / "whole")
    arguments = [str(whole), "--out", str(tmp_path / "ours"), "--shard-size", "100KB"]
    assert export_verb(arguments) == 0
    model = AutoModel.from_pretrained(whole, trust_remote_code=True)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    ours, theirs = (
        json.loads((tmp_path / side / "model.safetensors.index.json").read_text())
        for side in ("ours", "theirs")
    )
    assert ours["metadata"].items() >= theirs["metadata"].items()
    assert ours["weight_map"].keys() == theirs["weight_map"].keys()
    files = sorted(set(ours["weight_map"].values()))
    number = len(files)
    assert number > 2
    assert files == [f"model-{i + 1:05d}-of-{number:05d}.safetensors" for i in range(number)]
    for file in files:
        tensors = load_file(tmp_path / "ours" / file)
        assert set(tensors) == {n for n, where in ours["weight_map"].items() if where == file}
        assert sum(t.nbytes for t in tensors.values()) <= 100_000 or len(tensors) == 1
    opened = AutoModel.from_pretrained(tmp_path / "ours", trust_remote_code=True).state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.equal(opened[name]), name


def test_a_sharded_export_is_replaced_whole(small, tmp_path):
    out = tmp_path / "out"
    export(*small[::-1], out, shard_size="50KB")
    export(*small[::-1], out)
    assert {entry.name for entry in out.iterdir()} == ENCODER_FILES


def test_a_tensor_above_the_limit_has_its_own_file(tmp_path):
    tensors = {name: np.full(size, size, np.float32) for name, size in (("a", 9), ("b", 2))}
    write_weights(tmp_path, tensors, shard_bytes=20)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    for name, tensor in read_weights(tmp_path).items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_what_fits_is_one_file_without_an_index(tmp_path):
    write_weights(tmp_path, {"a": np.zeros(5, np.float32)}, shard_bytes=20)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_sizes():
    sizes = {"5GB": 5 * 10**9, "1.5 mb": 1_500_000, "2GiB": 2 * 2**30, "100KB": 100_000}
    assert {text: parse_size(text) for text in sizes} == sizes
    for text in ("5", "GB", "-1GB", "0GB", "5TB", ""):
        with pytest.raises(ValueError, match=f"size '{text}' must be"):
            parse_size(text)


def test_weights_too_large_for_float16_are_named(small, tmp_path):
    config, params = small
    probe = {**params["head"], "probe": np.full((1, 1, 64), 1e5, np.float32)}
    large = {**params, "head": probe}
    with pytest.raises(ValueError, match=r"'head\.probe' reaches 1e\+05, too large for float16"):
        export(large, config, tmp_path / "out", dtype="float16")
    assert not list(tmp_path.iterdir())
    stored = to_hf(large, config)["head.probe"]
    folder = export(large, config, tmp_path / "out", dtype="bfloat16")
    np.testing.assert_allclose(
        read_weights(folder)["head.probe"].astype(np.float32), stored, rtol=0.01
    )
