from __future__ import annotations

import argparse

import pytest

from codecvit.codec.config import (
    PRESETS,
    SelectionConfig,
    add_geometry_arguments,
    add_selection_arguments,
    selection_config,
)


def test_presets_say_what_the_documents_say():
    assert PRESETS["default"] == SelectionConfig("clip", "similarity", 1.0, 0.3, None)
    assert PRESETS["published"] == SelectionConfig("frame", "median", 1.0, 1.0, None)


def test_settings_change_single_fields():
    config = selection_config("published", ["scale=sqrt", "w_mv=0.5", "frame_cap=0.25"])
    assert config == SelectionConfig("sqrt", "median", 1.0, 0.5, 0.25)
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
        (["signal=estimate"], "field one of scale, camera"),
        (["scale"], "must be field=value"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        selection_config("default", settings)


def test_unknown_preset():
    with pytest.raises(ValueError, match="preset = 'best' must be one of default, published"):
        selection_config("best")


def test_command_line():
    parser = argparse.ArgumentParser()
    add_geometry_arguments(parser)
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
    assert selection_config(args.preset, args.set) == SelectionConfig("clip", "median", 1.0, 0.5)
    assert (args.num_frames, args.budget, args.size, args.patch) == (64, 2048, 112, 14)
    assert (args.start, args.end) == (None, 2.5)
