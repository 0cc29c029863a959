"""The ONNX graph gives the numbers of the PyTorch model, for any number of samples and tokens."""

import numpy as np
import pytest
import torch

from codecvit.convert import torch_input
from codecvit.convert.export import export
from codecvit.convert.export_verb import main
from codecvit.convert.folder import ENCODER_FILES


@pytest.fixture(scope="module")
def session(small, tmp_path_factory):
    """A running graph of the encoder `small`, written by the verb."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra onnx)")
    import onnx
    import onnxruntime

    folder = tmp_path_factory.mktemp("onnx")
    export(*small[::-1], folder / "plain", dtype="bfloat16")
    assert main([str(folder / "plain"), "--out", str(folder / "out"), "--onnx"]) == 0
    assert {path.name for path in (folder / "out").iterdir()} == ENCODER_FILES | {"model.onnx"}
    assert main([str(folder / "plain"), "--out", str(folder / "out")]) == 0  # replaced
    assert not (folder / "out" / "model.onnx").exists()
    export(*small[::-1], folder / "graph", onnx=True)
    path = folder / "graph" / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("lengths", [(40,), (7, 31), (1,), (64, 64, 2)])
def test_graph_gives_the_numbers_of_the_model(session, small, torch_model, make_sequence, lengths):
    sequences = [make_sequence(seed, length=length) for seed, length in enumerate(lengths)]
    arguments = torch_input(sequences)
    with torch.no_grad():
        expected = torch_model(*small)(**arguments)
    shape = arguments["patch_positions"].shape[:2]
    arguments.setdefault("attention_mask", torch.ones(shape, dtype=torch.bool))
    tokens, pooled = session.run(None, {name: x.numpy() for name, x in arguments.items()})
    np.testing.assert_allclose(tokens, expected.last_hidden_state.numpy(), atol=1e-4)
    np.testing.assert_allclose(pooled, expected.pooler_output.numpy(), atol=1e-4)
    moved = arguments["patch_positions"].numpy()[..., [0, 2, 1]]
    inputs = {name: x.numpy() for name, x in arguments.items()} | {"patch_positions": moved}
    if max(lengths) > 1:  # a single token attends to itself wherever it lies
        assert abs(session.run(None, inputs)[1] - pooled).max() > 1e-3


def test_missing_packages_are_named_and_nothing_is_left(small, tmp_path, monkeypatch, capsys):
    folder = export(*small[::-1], tmp_path / "plain")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "onnx" in name else 1)
    assert main([str(folder), "--out", str(tmp_path / "out"), "--onnx"]) == 1
    assert "onnx needs onnx: pip install 'codecvit[torch,onnx]'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]
