"""Benchmarks fetched from the hub: sizes, resuming, gates, archives."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile

import pytest

from codecvit.llava.benchmarks.download import fetch

from .hub_stand_in import SHA, TOKEN, Hub
from .made import NEXTQA, benchmark


@pytest.fixture
def hub(home, monkeypatch, tmp_path):
    """A hub with NExT-QA as a ZIP and a TAR in two pieces; nothing is unpacked yet."""
    clip = (home / "nextqa/NExTVideo/a/clip.mp4").read_bytes()
    shutil.rmtree(home)
    packed, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("NExTVideo/1/one.mp4", clip)
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        for name in ("NExTVideo/2/two.mp4", "NExTVideo/2/three.mp4"):
            member = tarfile.TarInfo(name)
            member.size = len(clip)
            archive.addfile(member, io.BytesIO(clip))
    whole = tarred.getvalue()
    pieces = whole[: len(whole) // 2 + 7], whole[len(whole) // 2 + 7 :]
    files = {"videos.zip": packed.getvalue(), "README.md": b"# A data set"}
    files |= {"more.tar.part.aa": pieces[0], "more.tar.part.ab": pieces[1]}
    hub = Hub(NEXTQA.hub, files)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    yield hub
    hub.shutdown()
    hub.server_close()


def test_a_download_says_its_size_resumes_and_is_unpacked(hub, home, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 256)
    hub.break_once, hub.refused = "videos.zip", "more.tar.part.ab"
    assert benchmark("nextqa", "--download") == 2
    assert "run again, it goes on where it stopped" in capsys.readouterr().err
    assert not (home / "nextqa").exists()
    hub.refused = None
    assert benchmark("nextqa", "--download") == 0
    printed = capsys.readouterr().out
    total = sum(map(len, hub.files.values()))
    assert f"{NEXTQA.hub} (main): 4 files, {total / 1e6:.1f} MB" in printed
    assert printed.index("4 files") < printed.index("3 videos")
    # What was there was not asked for again: neither the first half of a file, nor whole files.
    fetched = [(p.rsplit("/", 1)[1], r) for m, p, r, _ in hub.seen if m == "GET" and "resolve" in p]
    again = [r for name, r in fetched if name == "videos.zip"]
    assert again[0] is None and len(again) == 2 and int(again[1][6:].split("-")[0]) >= 1024
    assert [name for name, _ in fetched].count("more.tar.part.aa") == 1
    names = [
        row["video"]
        for row in map(
            json.loads,
            (home / "nextqa_mc_test_offline")
            .joinpath("nextqa_mc_test_videos.jsonl")
            .read_text()
            .splitlines(),
        )
    ]
    assert names == ["NExTVideo/1/one.mp4", "NExTVideo/2/three.mp4", "NExTVideo/2/two.mp4"]
    assert (home / "hub" / "datasets--lmms-eval--NExTQA" / "snapshots" / SHA).is_dir()
    # Another time nothing is fetched, even where the unpacked files are gone.
    asked = len(hub.seen)
    shutil.rmtree(home / "nextqa")
    assert benchmark("nextqa") == 0 and len(hub.seen) == asked
    assert (home / "nextqa" / "NExTVideo" / "2" / "two.mp4").is_file()


def test_a_gated_set_says_where_to_accept_it_and_the_token_stays_secret(
    hub, home, capsys, monkeypatch
):
    hub.gated = "manual"
    assert benchmark("nextqa", "--download") == 2
    told = capsys.readouterr().err
    assert f"{hub.url}/datasets/{NEXTQA.hub}" in told and "hf auth login" in told
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert benchmark("nextqa", "--download") == 0
    assert all(allowed for m, p, _, allowed in hub.seen if m == "GET" and "/resolve/" in p)
    printed = capsys.readouterr()
    assert TOKEN not in printed.out + printed.err
    written = [p for p in home.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    assert written == []


def test_no_such_set_no_server_no_room(hub, home, capsys, monkeypatch):
    hub.repo = "other/set"
    assert benchmark("nextqa", "--download") == 2
    assert "does not exist, or is private" in capsys.readouterr().err
    hub.repo, hub.claim = NEXTQA.hub, 1 << 60
    assert benchmark("nextqa", "--download") == 2
    assert "set HF_HOME to a larger disk" in capsys.readouterr().err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert benchmark("nextqa", "--download") == 2
    assert "could not be fetched from http://127.0.0.1:9 (" in capsys.readouterr().err
    assert not (home / "nextqa").exists()


def test_a_set_without_archives_is_linked(hub, home):
    clip = zipfile.ZipFile(io.BytesIO(hub.files["videos.zip"])).read("NExTVideo/1/one.mp4")
    hub.files = {"NExTVideo/1/one.mp4": clip}
    told = []
    folder = fetch(NEXTQA, home, {"HF_ENDPOINT": hub.url}, told.append)
    assert folder.is_symlink() and (folder / "NExTVideo/1/one.mp4").read_bytes() == clip
    assert len(told) == 1


def test_a_damaged_archive_leaves_no_folder_behind(hub, home, capsys):
    hub.files["videos.zip"] = hub.files["videos.zip"][:-30]
    assert benchmark("nextqa", "--download") == 2
    assert "videos.zip cannot be unpacked" in capsys.readouterr().err
    assert not (home / "nextqa").exists()
