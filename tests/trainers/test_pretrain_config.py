"""What a config file may say."""

import copy
import json

import pytest
from ml_collections import ConfigDict

from codecvit.configs.common import add_defaults
from codecvit.configs.fields import parse_arg
from codecvit.trainers.pretrain_config import PretrainConfig


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optim.lrr", 1.0, r"config\.optim\.lrr is no field; did you mean 'lr'\?"),
        ("model.deep", 3, r"config\.model\.deep is no field"),
        (
            "sources.video.batch_size",
            "8",
            r"config\.sources\.video\.batch_size = '8' must be of type int",
        ),
        ("sources.video.batch_size", 0, r"config\.sources\.video\.batch_size = 0 is out of range"),
        (
            "sources.video.head",
            "other",
            r"config\.sources\.video\.head = 'other' is not in config\.heads",
        ),
        ("heads.main.num_classes", True, "must be of type int"),
        ("max_nan_steps", 0, r"config\.max_nan_steps = 0 is out of range"),
        ("max_bad_records", -1, r"config\.max_bad_records = -1 is out of range"),
        ("optim.b2", 1.0, r"config\.optim\.b2 = 1\.0 is out of range"),
        ("optim.eps", 0.0, r"config\.optim\.eps = 0\.0 is out of range"),
        ("total_steps", -1, r"config\.total_steps = -1 is out of range"),
        ("seed", -1, r"config\.seed = -1 is out of range"),
    ],
)
def test_a_wrong_value_is_named(config_values, path, value, message):
    values = copy.deepcopy(config_values)
    *parents, last = path.split(".")
    owner = values
    for name in parents:
        owner = owner[name]
    owner[last] = value
    with pytest.raises(ValueError, match=message):
        PretrainConfig.from_dict(values)


def test_a_missing_value_is_named(config_values):
    del config_values["sources"]["video"]["budget"]
    with pytest.raises(ValueError, match=r"config\.sources\.video\.budget is missing"):
        PretrainConfig.from_dict(config_values)


def test_the_resolved_configuration_survives_json(config_values):
    config = PretrainConfig.from_dict(config_values)
    assert PretrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.optim.lr == 1e-3
    assert config.model.depth == 2


def test_config_arguments_take_the_type_of_their_default():
    arg = parse_arg("steps=5,name=x,fast", steps=1, name="", fast=False, rate=0.5)
    assert (arg.steps, arg.name, arg.fast, arg.rate) == (5, "x", True, 0.5)
    with pytest.raises(ValueError, match="'stepz' is unknown; known: steps"):
        parse_arg("stepz=5", steps=1)
    with pytest.raises(ValueError, match="steps=x must be of type int"):
        parse_arg("steps=x", steps=1)


def test_the_command_line_may_change_any_field_of_a_config_file(config_values):
    config = add_defaults(ConfigDict(config_values))
    config.optim.b2 = 0.95
    config.sources.video.loss_weight = 2.0
    config.model.remat = "full"
    made = PretrainConfig.from_dict(config.to_dict())
    assert (made.optim.b2, made.optim.lr) == (0.95, 1e-3)
    assert (made.sources["video"].loss_weight, made.model.remat, made.mesh.data) == (2.0, "full", 1)
    plain = PretrainConfig.from_dict(config_values)
    assert PretrainConfig.from_dict(add_defaults(ConfigDict(config_values)).to_dict()) == plain


def test_a_variant_sets_what_nobody_overrides(config_values):
    config_values["model"] = {"variant": "B/16"}
    config = add_defaults(ConfigDict(config_values))
    model = PretrainConfig.from_dict(config.to_dict()).model
    assert (model.width, model.depth, model.patch) == (768, 12, 16)
    config.model.depth = 2
    model = PretrainConfig.from_dict(config.to_dict()).model
    assert (model.width, model.depth, model.patch) == (768, 2, 16)
