"""What each stage trains, and what the next one starts from."""

from __future__ import annotations

import hashlib
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from codecvit.llava import LlavaForConditionalGeneration
from codecvit.llava.training import start
from codecvit.llava.training.checkpoints import latest_checkpoint, read_trained
from codecvit.llava.training.start import load_run, prepare_training, start_model
from codecvit.llava.training.train import train

from .runs import metrics_of, tiny_config, write_data

BLOCKS = r"vision_tower\.(embeddings|layernorm_pre|encoder\.layers\.[01]\.)"  # -2 of three blocks
ONE_BLOCK = BLOCKS.replace("01", "0")
NO_CONV = BLOCKS.replace("embeddings|", "")
NO_EMBEDDING = r"language_model\.(?!.*embed)"
ADAPTER = r"language_model\.model\.layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj\.lora_[AB]\."


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def fresh(encoder_dir, lm_dir, data):
    """Fields of a run that begins with new parts."""
    return {
        "model__encoder": str(encoder_dir),
        "model__language_model": str(lm_dir),
        "data__recipe": str(data),
    }


@pytest.fixture(scope="module")
def stage1(fresh, tmp_path_factory):
    """A finished projector stage with a large rate, so that it moves what it trains."""
    workdir = tmp_path_factory.mktemp("runs") / "projector"
    train(tiny_config("projector", **fresh, optim__lr=0.05, model__template="plain"), workdir)
    return workdir


def names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def hashes(model):
    return {
        name: hashlib.sha256(parameter.detach().numpy().tobytes()).hexdigest()
        for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize(
    ("stage", "changes", "trains"),
    [
        ("projector", {}, r"projector\."),
        ("sft", {}, rf"projector\.|language_model\.|{BLOCKS}"),
        ("sft", {"optim__vision_tower_lr": 0.0}, r"projector\.|language_model\."),
        ("sft", {"optim__projector_lr": 0.0}, rf"language_model\.|{BLOCKS}"),
        ("sft", {"optim__freeze": ("embed",)}, rf"projector\.|{NO_EMBEDDING}|{NO_CONV}"),
        ("sft", {"model__vision_select_layer": 1}, rf"projector\.|language_model\.|{ONE_BLOCK}"),
        ("lora", {}, rf"projector\.|{ADAPTER}"),
        ("lora", {"optim__vision_tower_lr": 1e-6}, rf"projector\.|{ADAPTER}|{BLOCKS}"),
        ("lora", {"lora__targets": ("q_proj",), "optim__projector_lr": 0.0}, r".*\.q_proj\.lora_"),
    ],
)  # fmt: skip
def test_each_stage_trains_exactly_its_part(fresh, stage, changes, trains):
    config = tiny_config(stage, **fresh, **changes)
    model = start_model(config)
    assert prepare_training(model, config) == names(model)
    wanted = {name for name, _ in model.named_parameters() if re.match(trains, name)}
    assert wanted and names(model) == wanted


@pytest.mark.parametrize("stage", ["projector", "lora"])
def test_frozen_weights_stay_and_trained_ones_move(fresh, tmp_path, stage):
    config = tiny_config(stage, **fresh, optim__lr=0.01, optim__projector_lr=0.01)
    before = start_model(config)
    trains = prepare_training(before, config)
    train(config, tmp_path / "run")
    after = load_run(tmp_path / "run")[1]
    old, new = hashes(before), hashes(after)
    changed = {name for name in old if old[name] != new[name]}
    assert changed == trains
    if stage == "projector":  # the finished folder too holds the frozen weights as they were
        model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
        assert hashes(model) == new


def test_a_checkpoint_holds_what_is_trained_and_nothing_else(stage1):
    trained = read_trained(latest_checkpoint(stage1))
    assert trained.keys() == {
        f"projector.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("stage", ["sft", "lora"])
def test_the_next_stage_starts_where_the_last_one_ended(
    fresh, stage1, data, tmp_path, stage, visual, batch
):
    """Three links: projector -> `stage` -> again, each trains everything it hands over."""
    rates = {"optim__lr": 0.02, "optim__vision_tower_lr": 0.01, "optim__projector_lr": 0.02}
    second = {"init": str(stage1), "data__recipe": str(data), **rates}
    links = [(stage1, tiny_config(stage, **second))]
    train(links[0][1], tmp_path / "second")
    links.append(
        (tmp_path / "second", tiny_config("sft", **{**second, "init": str(tmp_path / "second")}))
    )
    previous = None
    for run, config in links:
        end, begin = load_run(run)[1], start_model(config).eval()
        arguments = batch(end.config, [[65, visual(3), 66, 67], [68, 69]])
        with torch.no_grad():
            ended, begun = end(**arguments).logits, begin(**arguments).logits
        # Merging an adapter rounds; everything else is the same bit for bit.
        torch.testing.assert_close(ended, begun, rtol=0, atol=1e-5 if stage == "lora" else 0)
        assert previous is None or (ended - previous).abs().max() > 1e-3
        previous = ended
    with torch.no_grad():
        unborn = start_model(tiny_config("projector", **fresh)).eval()(**arguments).logits
    assert (unborn - previous).abs().max() > 1e-3


def test_captions_template_gives_way_to_the_language_models_own(stage1, data):
    fields = {"init": str(stage1), "data__recipe": str(data)}
    assert load_run(stage1)[1].config.template == "plain"
    assert start_model(tiny_config("sft", **fields)).config.template == "chatml"
    kept = tiny_config("sft", **fields, model__template="plain", model__timestamps=True)
    assert start_model(kept).config.template == "plain"
    assert start_model(kept).config.timestamps is True


def test_what_does_not_match_is_refused(fresh, stage1, data, tmp_path):
    fields = {"init": str(stage1), "data__recipe": str(data)}
    with pytest.raises(ValueError, match=r"config.model.projector = 'linear', but .* 'mlp2x_gelu'"):
        start_model(tiny_config("sft", **fields, model__projector="linear"))
    with pytest.raises(ValueError, match="neither a run's folder nor a model's"):
        start_model(tiny_config("sft", **{**fields, "init": str(tmp_path)}))
    with pytest.raises(ValueError, match="is no LoRA run"):
        start_model(tiny_config("lora", **fields, lora__after_lora="continue"))
    unfinished = tmp_path / "unfinished"
    shutil.copytree(stage1, unfinished)
    shutil.rmtree(unfinished / "model")
    with pytest.raises(ValueError, match="has not come to its end"):
        start_model(tiny_config("sft", **{**fields, "init": str(unfinished)}))


def test_a_model_folder_is_a_start_too(stage1, data):
    fields = {"data__recipe": str(data)}
    by_run = start_model(tiny_config("sft", **fields, init=str(stage1)))
    by_model = start_model(tiny_config("sft", **fields, init=str(stage1 / "model")))
    assert hashes(by_run) == hashes(by_model)


def test_other_frozen_weights_are_noticed(fresh, stage1, tmp_path):
    """A checkpoint of trained parts alone, put upon another language model, would be nonsense."""
    other = tmp_path / "lm"
    shutil.copytree(fresh["model__language_model"], other)
    model = start_model(tiny_config("projector", **fresh)).language_model
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.add_(0.01)
    model.save_pretrained(other)
    run = tmp_path / "run"
    shutil.copytree(stage1, run)
    text = (run / start.CONFIG).read_text()
    (run / start.CONFIG).write_text(text.replace(fresh["model__language_model"], str(other)))
    with pytest.raises(ValueError, match="trained upon other weights of the language_model"):
        load_run(run)


FORMS = {
    "ours": lambda name: f"projector.{name}",
    "bare": lambda name: name,
    "llava": lambda name: name.replace("mlp.", "model.mm_projector."),
    "llava, short": lambda name: name.replace("mlp.", "mm_projector."),
    "transformers": lambda name: name.replace("mlp.0", "multi_modal_projector.linear_1").replace(
        "mlp.2", "multi_modal_projector.linear_2"
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_projector_file_under_any_of_its_names(fresh, stage1, tmp_path, form):
    projector = load_run(stage1)[1].projector
    tensors = {FORMS[form](name): x.detach() for name, x in projector.named_parameters()}
    file = tmp_path / "projector.safetensors"
    save_file(tensors, file)
    model = start_model(tiny_config("projector", **fresh, init_projector=str(file)))
    for name, tensor in model.projector.state_dict().items():
        assert torch.equal(tensor, projector.state_dict()[name]), name
    torch.save(tensors, tmp_path / "mm_projector.bin")
    fields = {**fresh, "init_projector": str(tmp_path / "mm_projector.bin")}
    assert hashes(start_model(tiny_config("projector", **fields)).projector) == hashes(projector)


def test_a_projector_file_is_taken_whole_or_not_at_all(fresh, stage1, tmp_path):
    tensors = {
        f"mm_projector.{n[4:]}": x.detach()
        for n, x in load_run(stage1)[1].projector.named_parameters()
    }
    file = tmp_path / "projector.safetensors"
    config = tiny_config("projector", **fresh, init_projector=str(file))
    with pytest.raises(ValueError, match="does not exist"):
        start_model(config)
    for broken, message in [
        (
            {n: x for n, x in tensors.items() if "2.bias" not in n},
            r"lacks 1 parameters.*mlp\.2\.bias",
        ),
        ({**tensors, "mm_projector.4.weight": torch.ones(2)}, r"does not train|mlp\.4\.weight"),
        (
            {**tensors, "mm_projector.0.bias": torch.ones(3)},
            r"mlp\.0\.bias is \[3\], in the model \[32\]",
        ),
    ]:
        save_file(broken, file)
        with pytest.raises(ValueError, match=message):
            start_model(config)


def test_the_hand_off_trains_on(stage1, data, tmp_path):
    """A second stage from the first: its first loss is not that of an untrained projector."""
    config = tiny_config("sft", init=str(stage1), data__recipe=str(data), steps=2)
    train(config, tmp_path / "second")
    assert len(metrics_of(tmp_path / "second")) == 2
    assert (tmp_path / "second" / "model").is_dir()
