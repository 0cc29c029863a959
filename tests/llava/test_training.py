"""A run: what it learns, counts, writes; accumulation; stopping; bad settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from codecvit.llava import LlavaForConditionalGeneration
from codecvit.llava.data.dataset import Collator
from codecvit.llava.data.failures import Failure, TooManyFailures
from codecvit.llava.training.checkpoints import latest_checkpoint, read_state, read_trained
from codecvit.llava.training.config import OptimOptions, parse_config
from codecvit.llava.training.optim import rate_factor
from codecvit.llava.training.start import prepare_training, start_model
from codecvit.llava.training.train import main, train

from .made import (
    ARGUMENTS,
    moving,
    pack_rows,
    read_rows,
    turns,
    video_row,
    write_rows,
    write_video,
)
from .runs import metrics_of, options, tiny_config, write_data


@pytest.fixture(scope="module")
def parts(encoder_dir, lm_dir, tmp_path_factory):
    """Fields of a configuration: encoder, language model, data."""
    data = write_data(tmp_path_factory.mktemp("data"))
    return {
        "model__encoder": str(encoder_dir),
        "model__language_model": str(lm_dir),
        "data__recipe": str(data),
    }


def test_a_tiny_model_learns_its_rows_by_heart(parts, tmp_path):
    """Plain images of the same question: only who sees them can answer."""
    data = write_data(tmp_path, images=4, texts=0)
    rates = {"optim__lr": 1e-2, "optim__vision_tower_lr": 1e-3, "optim__b2": 0.95}
    sizes = {"batch_size": 4, "micro_batch_size": 4, "steps": 75, "log_steps": 15}
    config = tiny_config("sft", **{**parts, "data__recipe": str(data), **rates, **sizes})
    assert train(config, tmp_path / "run")["train/loss"] < 0.05


def test_accumulated_micro_batches_are_one_batch(parts, tmp_path):
    """Rows have unequally many supervised tokens: a mean of means would differ."""
    found = {}
    for micro in (1, 2, 8):
        sizes = {"batch_size": 8, "micro_batch_size": micro, "steps": 2, "optim__eps": 1e-3}
        workdir = tmp_path / str(micro)
        train(tiny_config("sft", **parts, **sizes), workdir)
        found[micro] = metrics_of(workdir), read_trained(latest_checkpoint(workdir))
    for micro in (1, 2):
        for one, other in zip(found[micro][0], found[8][0], strict=True):
            assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-5)
            assert one["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=1e-4)
            assert one["data/supervised_tokens"] == other["data/supervised_tokens"]
        for name, tensor in found[micro][1].items():
            torch.testing.assert_close(tensor, found[8][1][name], rtol=1e-5, atol=1e-7)


def test_gradient_checkpointing_changes_no_number(parts, tmp_path):
    rows = []
    for on in (False, True):
        train(tiny_config("sft", **parts, steps=2, gradient_checkpointing=on), tmp_path / str(on))
        rows.append(metrics_of(tmp_path / str(on)))
    for plain, saving in zip(*rows, strict=True):
        assert plain == pytest.approx(saving, rel=1e-6)


def reset_precision():
    """accelerate keeps one precision per process; a test may change it for itself."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def other_precision():
    reset_precision()
    yield
    reset_precision()


@pytest.mark.parametrize("stage", ["projector", "sft", "lora"])
def test_bf16_keeps_trained_weights_in_float32(parts, tmp_path, stage, other_precision):
    """Also with gradient checkpointing, and a row without visuals in a batch."""
    exact = tiny_config(stage, **parts, optim__lr=1e-3, steps=2)
    fields = {"precision": "bf16", "gradient_checkpointing": True, "optim__lr": 1e-3}
    rounded = train(tiny_config(stage, **parts, steps=2, **fields), tmp_path / "bf16")
    trained = read_trained(latest_checkpoint(tmp_path / "bf16"))
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert any((x != x.bfloat16()).any() for x in trained.values())
    reset_precision()
    plain = train(exact, tmp_path / "fp32")
    assert rounded["train/loss"] == pytest.approx(plain["train/loss"], rel=0.02)
    assert rounded["train/loss"] != plain["train/loss"]


def test_unusable_rows_are_counted_and_listed_and_nothing_takes_their_place(parts, tmp_path):
    data = write_data(tmp_path, images=6, texts=0)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[1]["image"] = "images/gone.png"
    rows[4]["conversations"] = turns("no place for the image", "red")
    write_rows(data, rows)
    fields = {**parts, "data__recipe": str(data), "batch_size": 2, "steps": 0, "epochs": 1.0}
    found = train(tiny_config("projector", **fields, micro_batch_size=1), tmp_path / "run")
    assert found["data/failures"] == 2
    listed = (tmp_path / "run" / "failures" / "process-000.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["source"].split()[-1] for line in listed) == ["i1)", "i4)"]
    state = read_state(latest_checkpoint(tmp_path / "run"))
    assert (state["step"], state["seen"], state["failed"]) == (3, 6, 2)
    # Rows 0, 2, 3, 5 and no other: their answers and ends of turn.
    supervised = sum(row["data/supervised_tokens"] for row in metrics_of(tmp_path / "run"))
    assert supervised == sum(len(rows[i]["conversations"][1]["value"]) + 1 for i in (0, 2, 3, 5))


@pytest.mark.parametrize("options", ["", " ".join(ARGUMENTS)])
def test_codec_rows_and_with_their_options_plain_videos(parts, tmp_path, options):
    """Rows of `codecvit llava data`, and the same video packed on the fly."""
    write_video(tmp_path / "a.mp4", moving())
    made = pack_rows(tmp_path, [video_row("a.mp4")])
    rows = read_rows(made / "train.jsonl")
    if options:
        rows.append(video_row(str(tmp_path / "a.mp4"), "plain"))
    write_rows(made / "train.jsonl", rows)
    fields = {**parts, "data__recipe": str(made / "train.jsonl"), "data__mosaics": options}
    fields |= {"batch_size": len(rows), "micro_batch_size": 1, "data__max_length": 500}
    timestamps = {"model__timestamps": True, "model__projector": "merger"}
    found = train(tiny_config("projector", **fields, **timestamps), tmp_path / "run")
    assert found["data/failures"] == 0 and found["perf/visual_tokens_per_second"] > 0
    # The model says which mosaics, and which size of images, it was trained on.
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    (pack,) = made.rglob("meta.json")
    assert config["assets_hash"] == json.loads(pack.read_text())["config_hash"]
    assert config["image_size"] == 16


def test_options_of_mosaics_that_do_not_exist_are_named(parts, tmp_path):
    for text, message in [("--sizes 3", "--sizes 3"), ("--num-images 0", "num_images = 0")]:
        with pytest.raises(ValueError, match=f"config.data.mosaics.*{message}"):
            train(tiny_config("projector", **parts, data__mosaics=text), tmp_path / "run")


def test_a_batch_of_failures_alone_has_a_gradient_of_zero_everywhere(parts):
    """Processes that share gradients wait for one of every weight that is trained."""
    config = tiny_config("sft", **parts)
    model = start_model(config)
    trained = prepare_training(model, config)
    batch = Collator(256)([Failure(0, "a row", "ANSWER", "none")])
    model(**batch.inputs, num_items_in_batch=5).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == trained
    assert not any(gradient.any() for gradient in gradients.values())


def test_too_many_unusable_rows_end_the_run(parts, tmp_path):
    rows = [{"id": i, "conversations": turns("no answer")} for i in range(20)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    fields = {**parts, "data__recipe": str(data), "steps": 9, "max_failures": 0.0}
    with pytest.raises(TooManyFailures, match="ANSWER"):
        train(tiny_config("projector", **fields), tmp_path / "run")


def test_a_loss_that_is_not_finite_changes_nothing_and_ends_the_run(parts, lm_dir, tmp_path):
    broken = tmp_path / "lm"
    broken.mkdir()
    for file in lm_dir.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    fields = {**parts, "model__language_model": str(broken), "max_nan_steps": 2, "steps": 5}
    fields["checkpoint__every_steps"] = 1
    with pytest.raises(ValueError, match="step 2: loss or gradient not finite for 2 steps"):
        train(tiny_config("projector", **fields), tmp_path / "run")
    trained = read_trained(latest_checkpoint(tmp_path / "run"))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in trained.values())


def test_metrics_say_what_went_through(parts, tmp_path):
    found = train(tiny_config("lora", **parts, steps=1), tmp_path / "run")
    for name in ("samples", "tokens", "visual_tokens"):
        assert found[f"perf/{name}_per_second"] > 0
    assert found["train/lr/language_model"] == 2e-4 and found["train/lr/projector"] == 2e-5
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def test_rates_rise_and_fall():
    cosine = OptimOptions(schedule="cosine", warmup=0.1)
    rates = [rate_factor(cosine, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[55] == pytest.approx(0.5) and 0 < rates[99] < 0.01
    linear = [rate_factor(OptimOptions(schedule="linear", warmup=0.0), s, 4) for s in range(4)]
    assert linear == [1.0, 0.75, 0.5, 0.25]
    constant = OptimOptions(schedule="constant", warmup=0.0)
    assert {rate_factor(constant, step, 9) for step in range(9)} == {1.0}


def test_the_finished_folder_is_complete(parts, tmp_path):
    """Model and tokenizer load from it alone, and answer."""
    from transformers import AutoTokenizer

    train(tiny_config("projector", **parts), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode("hello")])
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, 2)
    trained = read_trained(latest_checkpoint(tmp_path / "run"))
    state = model.state_dict()
    assert trained and all(torch.equal(state[name], x) for name, x in trained.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim__schedule": "cosin"}, "config.optim.schedule = 'cosin'"),
        ({"model__encoder": ""}, "config.model.encoder"),
        ({"init": "runs/a"}, "config.init gives both"),
        ({"optim__warmup": 1.5}, "share of the run"),
        ({"precision": "fp8"}, "config.precision"),
        ({"data__recipe": ""}, "config.data.recipe"),
        ({"optim__projector_lr": 0.0}, "nothing would be trained"),
        ({"max_failures": 2.0}, "config.max_failures"),
    ],
)
def test_settings_that_cannot_work_are_named(parts, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config("projector", **{**parts, **changes})


def test_an_unknown_field_is_named():
    values = options("projector", model__encoder="a", model__language_model="b", data__recipe="c")
    values["optim"]["warmup_steps"] = 3
    with pytest.raises(ValueError, match="warmup_steps is no field; did you mean 'warmup'"):
        parse_config(values)


def test_the_command_line(parts, tmp_path, root, capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "--init-projector" in capsys.readouterr().out
    given = f"stage=projector,runlocal,steps=1,encoder={parts['model__encoder']}"
    given += f",lm={parts['model__language_model']},data={parts['data__recipe']}"
    config = f"--config={root}/src/configs/llava.py:{given}"
    assert main([config]) == 2
    assert main([config, "--workdir", str(tmp_path / "run"), "--config.optim.lrr=1"]) == 2
    small = ["--config.model.image_size=16", "--config.model.template=chatml"]
    assert main([config, "--workdir", str(tmp_path / "run"), *small, "--config.batch_size=3"]) == 1
    assert "global_batch = 3 must be a multiple" in capsys.readouterr().err
    assert main([config, "--workdir", str(tmp_path / "run"), *small]) == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.slow  # the import contracts say so too, except for other people's packages
def test_no_jax_is_imported():
    code = "import codecvit.llava.training.train, sys; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sigterm_saves_and_the_run_goes_on(parts, tmp_path, monkeypatch):
    from codecvit.llava.training import loop

    def terminated(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    step = loop.train_step
    config = tiny_config("projector", **parts, steps=4)
    monkeypatch.setattr(loop, "train_step", terminated)
    train(config, tmp_path / "run")
    # It arrives in the first step, whose batch is counted already: the second is the last.
    assert read_state(latest_checkpoint(tmp_path / "run"))["step"] == 2
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.setattr(loop, "train_step", step)
    train(config, tmp_path / "run")
    assert [row["step"] for row in metrics_of(tmp_path / "run")] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "model").exists()
