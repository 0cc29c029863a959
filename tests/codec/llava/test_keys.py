"""Names that come from data are safe and do not collide."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecvit.codec.llava import asset_key, key_of
from codecvit.codec.llava.keys import (
    config_hash,
    pack_folder,
    pack_suffix,
    published_suffix,
    relative_path,
    sanitise,
)

HOSTILE = [
    "",
    ".",
    "..",
    "../../x",
    "a/b",
    "a\\b",
    "/etc/passwd",
    "~",
    "*",
    "a b",
    "\n",
    "\0",
    "电影",
]
HOSTILE += ["é", "e\u0301", "x" * 300, "x" * 301, ".hidden", "con:1", "-rf", "a__b", "\ud800"]
SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,80}")


def test_hostile_names_become_safe_and_stay_apart():
    names = [sanitise(name) for name in HOSTILE]
    assert all(SAFE.fullmatch(name) for name in names), names
    assert len({name.lower() for name in names}) == len(HOSTILE)


@given(st.text(max_size=100), st.text(max_size=100))
def test_any_name_becomes_safe(a, b):
    assert SAFE.fullmatch(sanitise(a))
    assert a == b or sanitise(a) != sanitise(b)


@pytest.mark.parametrize("name", ["v_123.part-2", "sample", "A", "0"])
def test_plain_names_stay(name):
    assert sanitise(name) == name


def test_the_key_is_the_stem_and_a_hash_of_the_relative_path(tmp_path):
    root = str(tmp_path)
    key = asset_key("videos/clip.mp4", root)
    assert re.fullmatch(r"clip-[0-9a-f]{8}", key)
    # However the path is written, and wherever the data set lies.
    assert asset_key(f"{root}/videos/clip.mp4", root) == key
    assert asset_key("./videos/x/../clip.mp4", root) == key
    assert asset_key("/data/videos/clip.mp4", "/data") == key
    assert asset_key("gs://bucket/set/videos/clip.mp4", "gs://bucket/set/") == key
    assert asset_key("gs://bucket/set/./videos/clip.mp4", "gs://bucket/set") == key
    # One stem in two folders, one name with two endings.
    assert len({asset_key(p, root) for p in ("a/clip.mp4", "b/clip.mp4", "a/clip.avi")}) == 3
    assert SAFE.fullmatch(asset_key("../..//%2e%2e/ .mp4", root))


def test_golden_names():
    """Packs and assets that exist have to be found by later versions."""
    assert asset_key("videos/clip.mp4", "/data") == "clip-f072f347"
    assert pack_folder("7", "videos/clip.mp4") == "shard23/sample_7__clip__f072f347c60c3736"
    assert published_suffix("/data/clip.mp4") == "clip__094f224c"


def test_a_key_of_its_own_overrides_the_path(tmp_path):
    root = str(tmp_path)
    assert key_of({"video": "clip.mp4", "key": "mine"}, root) == "mine"
    assert key_of({"video": "clip.mp4", "key": 17}, root) == "17"
    assert key_of({"video": "clip.mp4", "key": "../up"}, root) == sanitise("../up")
    for nothing in (None, ""):
        assert key_of({"video": "clip.mp4", "key": nothing}, root) == asset_key("clip.mp4", root)
    for video in (None, "", 3):
        with pytest.raises(ValueError, match="video = .* must be the path"):
            key_of({"video": video}, root)


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert relative_path("a.mp4", ".") == "a.mp4"
    assert relative_path("../b/a.mp4", str(Path("x").absolute())) == "../b/a.mp4"
    assert relative_path("s3://other/a.mp4", "gs://bucket") == "s3://other/a.mp4"


def test_pack_folders_hold_few_enough():
    folders = [pack_folder("x", f"{i}.mp4").split("/")[0] for i in range(20_000)]
    counts = [folders.count(folder) for folder in set(folders)]
    # A million videos: 50 times as many in each.
    assert len(counts) == 100 and max(counts) < 2 * 200
    assert pack_folder("any", "d/a.mp4").endswith(f"__{pack_suffix('d/a.mp4')}")


def test_the_config_hash_knows_values_not_order():
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    assert config_hash({"a": 1, "b": 2}) != config_hash({"a": 1, "b": 3})
