"""Adapters: where they sit, that they begin as nothing, and what becomes of them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from codecvit.codec.llava.cli import main
from codecvit.llava import LlavaForConditionalGeneration
from codecvit.llava.training.config import LoraOptions
from codecvit.llava.training.finish import write_model
from codecvit.llava.training.lora import add_lora, has_lora, is_adapter, merge_lora
from codecvit.llava.training.start import load_run, start_model
from codecvit.llava.training.train import train

from .runs import tiny_config, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def run(encoder_dir, lm_dir, data, tmp_path_factory):
    """A finished LoRA run whose adapter has moved far."""
    workdir = tmp_path_factory.mktemp("runs") / "lora"
    fields = {"model__encoder": str(encoder_dir), "model__language_model": str(lm_dir)}
    rates = {"optim__lr": 0.05, "optim__projector_lr": 0.02, "lora__dropout": 0.1}
    train(tiny_config("lora", **fields, **rates, data__recipe=data), workdir)
    return workdir


@pytest.fixture(scope="module")
def arguments(run, visual, batch):
    config = load_run(run)[1].config
    return batch(config, [[65, visual(3), 66, 67], [68, 69]])


def logits(model, arguments):
    with torch.no_grad():
        return model.eval()(**arguments).logits


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "phi3"])
def test_an_adapter_begins_as_nothing_in_all_linear_layers_but_the_output(
    kind, make_model, visual, batch
):
    model = make_model(kind)
    arguments = batch(model.config, [[65, visual(3), 66]])
    before = logits(model, arguments)
    linears = [
        name
        for name, module in model.language_model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    ]
    add_lora(model, LoraOptions(rank=2))
    assert torch.equal(logits(model, arguments), before)
    found = {
        n.split(".lora_")[0] for n, _ in model.language_model.named_parameters() if is_adapter(n)
    }
    assert found == set(linears)
    assert not any(is_adapter(name) for name, _ in model.vision_tower.named_parameters())
    merge_lora(model)
    assert not has_lora(model) and torch.equal(logits(model, arguments), before)


def test_layers_that_do_not_exist_are_named(make_model):
    with pytest.raises(
        ValueError, match=r"no linear layer .* called 'qkv_proj'; there are down_proj"
    ):
        add_lora(make_model(), LoraOptions(rank=2, targets=("qkv_proj",)))
    with pytest.raises(ValueError, match="called 'lm_head'"):
        add_lora(make_model(), LoraOptions(rank=2, targets=("lm_head",)))


def test_merged_equals_adapted(run, arguments, tmp_path, capsys):
    adapted = load_run(run)[1]
    assert has_lora(adapted)
    assert main(["merge-lora", str(run), "--out", str(tmp_path / "merged")]) == 0
    merged = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert not has_lora(merged)
    expected = logits(adapted, arguments)
    assert (logits(merged, arguments) - expected).abs().max() <= 1e-5
    # The finished folder is the same model; without its adapter it would be another.
    finished = LlavaForConditionalGeneration.from_pretrained(run / "model")
    assert torch.equal(logits(finished, arguments), logits(merged, arguments))
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:
            parameter.data.zero_()
    assert (logits(adapted, arguments) - expected).abs().max() > 1e-2
    assert main(["merge-lora", str(run), "--out", str(tmp_path / "merged")]) == 1
    assert "is not empty" in capsys.readouterr().err
    again = ["--overwrite", "--dtype", "bfloat16"]
    assert main(["merge-lora", str(run), "--out", str(tmp_path / "merged"), *again]) == 0
    dtypes = {x.dtype for x in load_file(tmp_path / "merged/model.safetensors").values()}
    assert dtypes == {torch.bfloat16}
    assert main(["merge-lora", str(tmp_path), "--out", str(tmp_path / "other")]) == 1


def test_peft_reads_the_adapter_folder(run, lm_dir):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    language_model = AutoModelForCausalLM.from_pretrained(lm_dir, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(language_model, run / "adapter").eval()
    ids = torch.tensor([[65, 66, 67]])
    with torch.no_grad():
        ours = load_run(run)[1].language_model(ids).logits
        torch.testing.assert_close(theirs(ids).logits, ours, rtol=0, atol=1e-6)
    described = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(lm_dir)
    others = load_file(run / "adapter" / "other_trained.safetensors")
    assert others.keys() == {f"projector.mlp.{i}.{k}" for i in (0, 2) for k in ("weight", "bias")}


def test_the_next_stage_merges_or_continues(run, data, arguments, tmp_path):
    ended = logits(load_run(run)[1], arguments)
    fields = {"init": str(run), "data__recipe": data, "lora__alpha": 8.0}
    going = start_model(tiny_config("lora", **fields, lora__after_lora="continue"))
    assert torch.equal(logits(going, arguments), ended)
    fresh = start_model(tiny_config("lora", **fields, lora__rank=2))  # a new one of another rank
    assert (logits(fresh, arguments) - ended).abs().max() <= 1e-5
    ours = load_run(run)[1].state_dict()
    for name, tensor in going.state_dict().items():
        assert torch.equal(tensor, ours[name]), name
    assert all(not p.any() for n, p in fresh.named_parameters() if ".lora_B." in n)
    with pytest.raises(ValueError, match="rank, alpha and targets of .* are 4, 8.0"):
        start_model(tiny_config("lora", **fields, lora__rank=2, lora__after_lora="continue"))
    # A run that continues is whole again: its own model folder needs no other's.
    config = tiny_config("lora", **fields, lora__after_lora="continue", optim__lr=0.01)
    train(config, tmp_path / "third")
    third = load_run(tmp_path / "third")[1]
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "third" / "model")
    assert (logits(model, arguments) - logits(third, arguments)).abs().max() <= 1e-5
    assert (logits(third, arguments) - ended).abs().max() > 1e-3


def test_an_adapter_that_is_no_number_is_not_merged(run, tmp_path):
    model = load_run(run)[1]
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="cannot be merged"):
        merge_lora(model)


def test_a_run_that_is_not_finished_has_a_model_too(run, tmp_path, arguments):
    import shutil

    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    shutil.rmtree(broken / "model")
    write_model(broken, tmp_path / "out")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    finished = LlavaForConditionalGeneration.from_pretrained(run / "model")
    assert torch.equal(logits(model, arguments), logits(finished, arguments))
