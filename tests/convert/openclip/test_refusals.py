"""What cannot be imported or exported is refused, and the message says why."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from codecvit.convert.export import export
from codecvit.convert.export_verb import main as export_verb
from codecvit.convert.import_hf import main as import_verb
from codecvit.convert.openclip.names import POSITIONS
from codecvit.convert.openclip.read import read_clip
from codecvit.convert.openclip.settings import ClipOrigin, Parts
from codecvit.convert.openclip.write import export_clip
from codecvit.data.tokenizers import open_tokenizer

from .helpers import SIZE, publish, same_trees


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
