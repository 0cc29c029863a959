"""Image-text runs: resume, the hand-over between stages, evaluation in the loop and alone."""

import copy
import json
import shutil

import jax
import numpy as np
import pytest

from codecvit.metrics import read_metrics
from codecvit.trainers import evaluate_pairs
from codecvit.trainers.checkpoint_reading import restore_params, restore_rest
from codecvit.trainers.contrastive import train_on_mesh
from codecvit.trainers.contrastive import train_pairs as train_on_all_devices
from codecvit.trainers.contrastive_config import ContrastiveConfig
from codecvit.trainers.mesh import make_mesh


def train_pairs(config, workdir):
    """On one device: eight that share two cores would wait for each other."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        return train_on_mesh(config, workdir, mesh)


@pytest.fixture
def evaluated(pair_values, pairs_folder):
    """40 steps with both evaluations on other pictures at the end."""
    values = copy.deepcopy(pair_values)
    values["model"]["decoder"] = None
    values["total_steps"] = 40
    test = f"table:{pairs_folder}/test.jsonl"
    classes = f"{pairs_folder}/classes.txt"
    (pairs_folder / "templates.txt").write_text("a {} square\n")
    values["zero_shot"] = {
        "colours": {
            "pairs": test,
            "classes": classes,
            "columns": "text_0=label",
            "templates": str(pairs_folder / "templates.txt"),
            "batch_size": 16,
        }
    }
    values["retrieval"] = {"captions": {"pairs": test, "preset": "default", "batch_size": 16}}
    return values


def test_it_learns_the_words_and_evaluates_alone_as_in_the_loop(
    evaluated, pairs_folder, tmp_path, capsys
):
    metrics = train_pairs(ContrastiveConfig.from_dict(evaluated), tmp_path / "run")
    assert metrics["train/pairs/accuracy"] >= 0.0
    rows = read_metrics(tmp_path / "run")
    found = {key: value for row in rows for key, value in row.items() if "/colours/" in key}
    assert found["zero_shot/colours/top1"] == 1.0  # chance 0.25
    assert found["zero_shot/colours/count"] == 32
    recall = next(r for r in reversed(rows) if "retrieval/captions/images" in r)
    assert recall["retrieval/captions/captions"] == 64
    arguments = [str(tmp_path / "run"), "--classes", f"{pairs_folder}/classes.txt"]
    arguments += ["--zero-shot", f"table:{pairs_folder}/test.jsonl", "--columns", "text_0=label"]
    arguments += ["--templates", f"{pairs_folder}/templates.txt", "--image-size", "28"]
    assert evaluate_pairs.main([*arguments, "--out", str(tmp_path / "alone.json")]) == 0
    capsys.readouterr()
    alone = json.loads((tmp_path / "alone.json").read_text())["zero_shot"]
    assert alone["top1"] == 1.0


@pytest.mark.slow
def test_a_run_that_is_cut_continues_bit_equal(pair_values, tmp_path):
    config = ContrastiveConfig.from_dict({**pair_values, "checkpoint": {"every_steps": 3}})
    train_pairs(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "6")
    train_pairs(config, tmp_path / "cut")
    for read in (lambda d: restore_params(d)[0], lambda d: restore_rest(d, "params/text/")):
        whole, cut = read(tmp_path / "whole"), read(tmp_path / "cut")
        jax.tree.map(np.testing.assert_array_equal, whole, cut)
    losses = [
        [row["train/loss"] for row in read_metrics(tmp_path / name) if "train/loss" in row]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow  # tests/e2e/test_openvision.py hands over between stages too
def test_a_stage_takes_all_over_at_another_resolution(pair_values, tmp_path):
    values = {**pair_values, "total_steps": 3}
    train_pairs(ContrastiveConfig.from_dict(values), tmp_path / "low")
    high = copy.deepcopy(values)
    high["sources"]["pairs"]["image_size"] = 42
    high["total_steps"] = 1
    high["optim"] = {"lr": 1e-12, "clip_norm": 0.0, "weight_decay": 0.0}
    parts = ("image_head", "text", "logit_scale", "decoder")
    high["init"] = {"checkpoint": str(tmp_path / "low"), "parts": parts}
    train_pairs(ContrastiveConfig.from_dict(high), tmp_path / "high")
    for part in ("params/text/", "params/decoder/", "params/image_head/"):
        low, new = (restore_rest(tmp_path / stage, part) for stage in ("low", "high"))
        for name, rows in low.items():
            np.testing.assert_allclose(rows, new[name], atol=1e-9, err_msg=name)
    del high["init"]["parts"]
    with_other_heads = copy.deepcopy(high)
    with_other_heads["model"]["vision"]["num_heads"] = 1
    with pytest.raises(ValueError, match="was trained with num_heads = 2"):
        train_pairs(ContrastiveConfig.from_dict(with_other_heads), tmp_path / "other")


def test_a_vocabulary_that_does_not_fit_is_refused(pair_values, tmp_path):
    values = copy.deepcopy(pair_values)
    values["model"]["text"]["vocab_size"] = 10
    with pytest.raises(ValueError, match=r"over config.model.text.vocab_size = 10"):
        train_pairs(ContrastiveConfig.from_dict(values), tmp_path)
    values = {**pair_values, "text": {"token_len": 11, "output_token_len": 16}}
    with pytest.raises(ValueError, match=r"config.text.token_len = 11, but .* context_length = 12"):
        train_pairs(ContrastiveConfig.from_dict(values), tmp_path)


def test_captioning_alone_cannot_be_evaluated(evaluated, tmp_path):
    evaluated["model"]["text"] = None
    evaluated["model"]["decoder"] = {
        "width": 64, "depth": 1, "num_heads": 2, "mlp_dim": 96,
        "kind": "causal", "vocab_size": 32, "output_length": 16,
    }  # fmt: skip
    with pytest.raises(ValueError, match="captioning alone gives no common embedding"):
        train_pairs(ContrastiveConfig.from_dict(evaluated), tmp_path)


def test_pairs_that_cannot_be_read_are_counted(pair_values, pairs_folder, tmp_path):
    folder = shutil.copytree(pairs_folder, tmp_path / "pairs")
    (folder / "train3.png").write_bytes(b"no picture")
    table = folder / "train.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    del rows[7]["text_1"]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = copy.deepcopy(pair_values)
    values["sources"]["pairs"]["pairs"] = f"table:{table}"
    metrics = train_pairs(ContrastiveConfig.from_dict(values), tmp_path / "run")
    assert metrics["train/bad_records"] == 3  # 6 steps of 16 of 32: three epochs
    assert metrics["data/pairs/lacked"] == 3
    assert metrics["data/pairs/unreadable/undecodable"] == 1  # one picture, three times


def test_the_mesh_of_a_run_must_divide_its_batch(pair_values, tmp_path):
    values = copy.deepcopy(pair_values)
    values["mesh"] = {"data": 8}
    values["sources"]["pairs"]["batch_size"] = 12
    assert make_mesh(ContrastiveConfig.from_dict(values).mesh).size == 8
    with pytest.raises(ValueError, match="batch_size = 12 must be a multiple of the 8 devices"):
        train_on_all_devices(ContrastiveConfig.from_dict(values), tmp_path)
