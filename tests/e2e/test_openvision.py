"""The image-text configs: every published row, every stage shrunk, and the launch script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from codecvit.__main__ import main as codecvit
from codecvit.configs.openvision import MODELS, STAGES, get_config
from codecvit.metrics import read_metrics
from codecvit.trainers.contrastive import train_on_mesh
from codecvit.trainers.contrastive_config import ContrastiveConfig
from codecvit.trainers.mesh import make_mesh

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "contrastive" / "train.sh"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    sizes = ["--train-pairs", "128", "--test-pairs", "32"]
    assert codecvit(["demo-data", "--pairs", "--out", str(folder), *sizes]) == 0
    (folder / "templates.txt").write_text("{} over flowers\n")
    return folder


def launch(**variables):
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1", **variables}
    return subprocess.run(
        ["bash", str(SCRIPT)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", MODELS)
def test_every_published_row_is_a_config(name, stage):
    config = ContrastiveConfig.from_dict(get_config(f"img={name},stage={stage}").to_dict())
    (source,) = config.sources.values()
    assert source.image_size == MODELS[name].res[list(STAGES).index(stage)]
    assert config.model.text.vocab_size == config.model.decoder.vocab_size == 32_000
    # docs/image_text.md: the numbers of the published scripts.
    steps = {"pre": 390_981, "ft224": 62_556, "ft384": 31_278}
    rates = {"pre": 1.024e-3, "ft224": 2.56e-5, "ft384": 3.2e-6}
    assert config.total_steps == pytest.approx(steps[stage], abs=2)
    assert config.optim.lr == pytest.approx(rates[stage])
    assert config.optim.warmup_steps == pytest.approx({"ft384": 0}.get(stage, 1563), abs=1)


def test_version_2_and_other_arguments():
    config = ContrastiveConfig.from_dict(get_config("img=L/14,version=2").to_dict())
    assert config.model.text is None and config.parts == ("decoder",)
    assert config.captioning.keep_ratio == 0.35
    ours = ContrastiveConfig.from_dict(get_config("img=B/16,tower=codecvit").to_dict())
    assert type(ours.model.vision).__name__ == "ViTConfig"
    with pytest.raises(ValueError, match=r"img=X/16 must be one of Ti/16"):
        get_config("img=X/16")
    with pytest.raises(ValueError, match="So400m"):
        made = get_config("img=So400m/14,tower=codecvit").to_dict()
        ContrastiveConfig.from_dict(made)


@pytest.mark.parametrize("version", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_stage_runs_shrunk_from_the_one_before(version, pairs, tmp_path):
    init = ""
    for stage in STAGES:
        made = get_config(
            f"runlocal,version={version},stage={stage},init={init},"
            f"pairs=table:{pairs}/train.jsonl,vocab={pairs}/vocab.txt"
        )
        made.total_steps, made.optim.warmup_steps, made.sources.pairs.batch_size = 2, 1, 16
        if version == 1 and stage == "ft384":
            test = {"pairs": f"table:{pairs}/test.jsonl", "batch_size": 32}
            names = {"classes": f"{pairs}/classes.txt", "templates": f"{pairs}/templates.txt"}
            made.zero_shot = {"digits": {**test, **names}}
            made.retrieval = {"captions": test}
        init = str(tmp_path / stage)
        config = ContrastiveConfig.from_dict(made.to_dict())
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        with jax.set_mesh(mesh):
            metrics = train_on_mesh(config, Path(init), mesh)
        assert metrics["train/nan_steps"] == 0
    if version == 1:
        last = read_metrics(init)[-1]
        assert last["zero_shot/digits/count"] == last["retrieval/captions/images"] == 32
    jax.clear_caches()


def test_the_model_zoo_is_what_the_configs_say():
    command = [sys.executable, str(ROOT / "scripts" / "model_zoo.py"), "--check"]
    done = subprocess.run(command, check=False)
    assert done.returncode == 0, "run python scripts/model_zoo.py"


def test_the_script_launches_three_stages_one_after_the_other():
    done = launch(EXP_PATH="/runs", DATACOMP_PATH="gs://b/pairs", VOCAB_PATH="v.txt", MODEL="L/14")
    assert done.returncode == 0, done.stderr
    lines = [line.replace("\\", "") for line in done.stdout.splitlines() if line.startswith("$")]
    assert [line.split("--workdir=")[1] for line in lines] == [
        "/runs/L-14/pre",
        "/runs/L-14/ft224",
        "/runs/L-14/ft384",
    ]
    for line, init in zip(lines, ["", "/runs/L-14/pre", "/runs/L-14/ft224"], strict=True):
        argument = line.split("openvision.py:")[1].split(" ")[0]
        assert f"init={init}" in argument.split(",")
        config = ContrastiveConfig.from_dict(get_config(argument).to_dict())
        assert config.sources["pairs"].pairs == "records:gs://b/pairs"


def test_every_variable_of_the_script_has_its_effect():
    base = {"EXP_PATH": "/runs", "DATACOMP_PATH": "records:/p", "VOCAB_PATH": "v.txt"}
    plain = launch(**base).stdout
    others = {
        "MODEL": "S/16", "TXT_MODEL": "B", "DECODER_NAME": "B", "VERSION": "2", "PRE_RES": "128",
        "FT_RES": "192", "FT2_RES": "256", "PRE_TRAIN_EPOCH": "7", "FT_TRAIN_EPOCH": "0",
        "FT2_TRAIN_EPOCH": "3", "PRE_LR": "1e-5", "FT_LR": "1e-6", "FT2_LR": "2e-7",
        "BATCH_FACTOR": "4", "FT_BATCH_FACTOR": "2", "FT2_BATCH_FACTOR": "1", "token_len": "64",
        "output_token_len": "100", "mask_ratio": "0.5", "fsdp_parallelism": "4",
        "tensor_parallelism": "2", "IN1K_DATA_DIR": "/in1k", "COCO_DATA_DIR": "/coco",
        "Flickr_DATA_DIR": "/flickr",
    }  # fmt: skip

    def launches(text):
        return [line for line in text.splitlines() if line.startswith("$")]

    for name, value in others.items():
        done = launch(**base, **{name: value})
        assert done.returncode == 0, (name, done.stderr)
        assert launches(done.stdout) != launches(plain), name


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "EXP_PATH is not set"),
        ({"EXP_PATH": "/r", "DATACOMP_PATH": "/p"}, "VOCAB_PATH is not set"),
        ({"PRE_LR": "fast"}, "PRE_LR=fast must be a number"),
        ({"PRE_RES": "84px"}, "PRE_RES=84px must be a whole number"),
        ({"VERSION": "3"}, "VERSION=3 must be 1 or 2"),
        ({"ZONE": "z"}, "ZONE and PROJECT_ID go with TPU_NAME"),
        ({"TPU_NAME": "t"}, "TPU_NAME=t needs ZONE and PROJECT_ID"),
    ],
)
def test_the_script_says_what_is_missing(variables, message):
    base = {"EXP_PATH": "/r", "DATACOMP_PATH": "/p", "VOCAB_PATH": "v"}
    given = variables if "_PATH" in message else {**base, **variables}
    done = launch(**given)
    assert done.returncode == 2
    assert message in done.stderr
