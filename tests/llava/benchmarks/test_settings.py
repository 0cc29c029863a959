"""Options of the plugin and the published variables: each has its effect, or is refused by name."""

from __future__ import annotations

import pytest

from codecvit.llava.benchmarks.settings import read_settings

from .made import ask, video_docs


def test_published_variables_do_what_they_say(make, bench, monkeypatch):
    monkeypatch.setenv("LLAVA_CODEC_USE_OFFLINE", "1")
    monkeypatch.setenv("LLAVA_CODEC_OFFLINE_ROOT", f"{bench / 'videos'}:{bench / 'made'}")
    for name, value in (("NUM_IMAGES", 3), ("SQUARE_SIZE", 64), ("SEQ_LEN_FRAMES", 16)):
        monkeypatch.setenv(f"LLAVA_CODEC_{name}", str(value))
    monkeypatch.setenv("LLAVA_CODEC_PATCH_SIZE", "16")
    monkeypatch.setenv("LLAVA_CODEC_VISIDX_MODE", "pack_topk")
    docs = video_docs(bench)
    model = make(assets=None)
    assert len(ask(model, docs)) == 4 and model._shown.describe()["videos"] == {"hit": 2}
    for name, value in (
        *(("NUM_IMAGES", "8"), ("SQUARE_SIZE", "576"), ("PATCH_SIZE", "14")),
        ("SEQ_LEN_FRAMES", "64"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(f"LLAVA_CODEC_{name}", value)
            with pytest.raises(SystemExit, match=f"LLAVA_CODEC_{name} says .* = {value}, but the"):
                ask(make(assets=None), docs)


def test_published_variables_set_up_packing(make, bench, monkeypatch):
    monkeypatch.setenv("LLAVA_CODEC_USE_OFFLINE", "0")
    for name, value in (("NUM_IMAGES", 2), ("SQUARE_SIZE", 64), ("SEQ_LEN_FRAMES", 12)):
        monkeypatch.setenv(f"LLAVA_CODEC_{name}", str(value))
    model = make(assets=None, on_miss="pack")
    ask(model, video_docs(bench)[:1])
    options = model._shown.describe()["options"]
    assert (options["num_images"], options["size"], options["num_frames"]) == (2, 64, 12)


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({"USE_OFFLINE": "1"}, {}, "no assets are named"),
        ({"USE_OFFLINE": "0", "OFFLINE_ROOT": "/a"}, {}, "remove one of the two"),
        ({"USE_OFFLINE": "perhaps"}, {}, "must be 1 or 0"),
        ({"OFFLINE_ROOT": "/a"}, {"assets": "/b"}, "give one"),
        ({"NUM_IMAGES": "eight"}, {}, "LLAVA_CODEC_NUM_IMAGES = 'eight' must be a number"),
        ({"NUM_IMAGES": "0"}, {}, "at least 1"),
        ({"NUM_IMAGES": "8"}, {"num_images": 4}, "option num_images says 4, but"),
        ({"VISIDX_MODE": "energy"}, {}, "must be pack_topk"),
        ({"DEBUG": "2"}, {}, "must be 0, 1 or all"),
        ({"DEBUG": "1"}, {"debug": "all"}, "give one"),
        ({"TOPK": "1"}, {}, "LLAVA_CODEC_TOPK: no such variable"),
        ({}, {"on_miss": "skip"}, "must be one of error, pack, frames"),
    ],
)
def test_variables_that_cannot_be_followed_are_refused_by_name(variables, options, message):
    with pytest.raises(ValueError, match=message):
        read_settings({f"LLAVA_CODEC_{n}": v for n, v in variables.items()}, **options)


def test_an_empty_variable_is_not_set_and_lists_keep_urls():
    assert read_settings({"LLAVA_CODEC_OFFLINE_ROOT": " ", "HOME": "/x"}).assets == ()
    assert read_settings({}, assets="/a:gs://b/c:d").assets == ("/a", "gs://b/c", "d")
