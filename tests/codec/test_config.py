from __future__ import annotations

import argparse

import pytest

from codecvit.codec.arguments import (
    add_selection_arguments,
    add_span_arguments,
    add_view_arguments,
    view_options,
)
from codecvit.codec.config import PRESETS, SelectionConfig, selection_config


def test_presets_say_what_the_documents_say():
    default = PRESETS["default"]
    assert default == SelectionConfig()
    assert (default.signal, default.scale, default.camera) == ("estimate", "clip", "similarity")
    assert (default.w_res, default.w_mv, default.frame_cap, default.pair_dt) == (1, 0.3, None, None)
    assert (default.policy, default.policy_arg, default.block) == ("top_k", None, 1)
    assert (default.first_frame, default.padding) == ("whole", "keep")
    assert PRESETS["published"] == SelectionConfig(scale="frame", camera="median", w_mv=1.0)
    assert PRESETS["fast"] == SelectionConfig(signal="difference", camera="none", w_mv=0.0)


def test_settings_change_single_fields():
    config = selection_config("published", ["scale=sqrt", "w_mv=0.5", "frame_cap=0.25"])
    expected = SelectionConfig(scale="sqrt", camera="median", w_mv=0.5, frame_cap=0.25)
    assert config == expected
    config = selection_config("fast", ["policy=groups", "policy_arg=16", "block=2", "pair_dt=0.2"])
    assert (config.policy, config.policy_arg, config.block, config.pair_dt) == (
        "groups",
        16,
        2,
        0.2,
    )
    assert selection_config("default", ["frame_cap=None"]).frame_cap is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["scale=loud"], "scale = 'loud' must be one of clip, sqrt, frame"),
        (["camera=affine"], "camera = 'affine' must be one of similarity, median, none"),
        (["w_res=-1"], "w_res = -1.0 must be"),
        (["w_mv=nan"], "w_mv = nan must be"),
        (["w_mv=much"], "w_mv = 'much' must be a number"),
        (["w_res=0", "w_mv=0"], "at least one"),
        (["frame_cap=0"], "frame_cap = 0.0 must be"),
        (["frame_cap=1.5"], "frame_cap = 1.5 must be"),
        (["signal=qp"], "signal = 'qp' must be one of estimate, bitstream, difference"),
        (["sgnal=estimate"], "field one of signal, scale, camera"),
        (["policy=best"], "policy = 'best' must be one of top_k, time_bucket, groups, random"),
        (["policy_arg=4"], "policy_arg = 4 must be None with policy = 'top_k'"),
        (["policy=groups", "policy_arg=65"], "policy_arg = 65 must be at most 64"),
        (["policy=groups", "policy_arg=0"], "policy_arg = 0 must be"),
        (["policy=groups", "policy_arg=1.5"], "policy_arg = '1.5' must be an integer"),
        (["block=3"], "block = 3 must be 1 or 2"),
        (["first_frame=half"], "first_frame = 'half' must be one of whole, ranked"),
        (["padding=zero"], "padding = 'zero' must be one of keep, exclude, repeat"),
        (["pair_dt=0"], "pair_dt = 0.0 must be"),
        (["pair_dt=0.2", "signal=bitstream"], "pair_dt = 0.2 must be None with signal"),
        (["signal=difference", "w_res=0"], "no motion to rank by"),
        (["scale"], "must be field=value"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        selection_config("default", settings)


def test_unknown_preset():
    with pytest.raises(ValueError, match="preset = 'best' must be one of default, published, fast"):
        selection_config("best")


def test_command_line():
    parser = argparse.ArgumentParser()
    add_view_arguments(parser, size=448)
    add_span_arguments(parser)
    add_selection_arguments(parser)
    args = parser.parse_args(
        [
            "--preset",
            "published",
            "--set",
            "w_mv=0.5",
            "--set",
            "scale=clip",
            "--size",
            "112",
            "--end",
            "2.5",
        ]
    )
    expected = SelectionConfig(scale="clip", camera="median", w_mv=0.5)
    assert selection_config(args.preset, args.set) == expected
    assert view_options(args) == {
        "num_frames": 64,
        "sampling": "index",
        "geometry": "crop",
        "size": 112,
        "patch": 14,
    }
    assert view_options(parser.parse_args([]))["size"] == 448
    assert (args.start, args.end) == (None, 2.5)
