"""Public benchmarks: names, assets under the keys that are looked up, downloads, commands."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from codecvit.codec.llava.cli import main
from codecvit.codec.llava.keys import key_of
from codecvit.codec.llava.packs import PackError
from codecvit.llava.benchmarks import local_task
from codecvit.llava.benchmarks.download import fetch
from codecvit.llava.benchmarks.roots import AssetRoots
from codecvit.llava.benchmarks.tasks import (
    BENCHMARKS,
    benchmark_of,
    benchmarks_named,
    hf_home,
    lmms_tasks,
    offline_folders,
    video_folder,
)

from .hub_stand_in import SHA, TOKEN, Hub
from .mcq_made import StandIn, made_questions, run_all, write_clip, write_merv

PACKING = ["--workers", "0", "--num-frames", "8", "--num-images", "2", "--size", "64"]
NEXTQA = benchmarks_named("nextqa")[0]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """a/clip.mp4, b/clip.mp4, b/Other.MP4"""
    folder = tmp_path_factory.mktemp("clips")
    for number, name in enumerate(("a/clip.mp4", "b/clip.mp4", "b/Other.MP4")):
        write_clip(folder / name, frames=10 + number)
    return folder


@pytest.fixture
def home(clips, tmp_path, monkeypatch):
    """HF_HOME with the clips of one task, two of them with the same name, where lmms-eval looks."""
    home = tmp_path / "home"
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    shutil.copytree(clips, home / "nextqa" / "NExTVideo")
    (home / "nextqa" / "NExTVideo" / "notes.txt").write_text("no video")
    (home / "nextqa" / "NExTVideo" / "b" / "._clip.mp4").write_text("a Mac's shadow file")
    return home


def benchmark(*arguments):
    return main(["benchmark", *map(str, arguments), *PACKING])


def test_names_are_those_of_lmms_eval_and_their_short_ones():
    assert {b.short: b.task for b in BENCHMARKS if b.short} == {
        "perceptiontest": "perceptiontest_val_mc",
        "nextqa": "nextqa_mc_test",
        "temporalbench": "temporalbench_long_qa",
        "longvideobench": "longvideobench_val_v",
    }
    assert {b.task for b in BENCHMARKS if not b.short} == {
        *("videomme", "mvbench", "video_mmmu", "tomato", "mlvu_dev", "egoschema"),
        *("ai2d", "chartqa", "docvqa_val"),
    }
    assert {b.task for b in BENCHMARKS if not b.has_videos} == {"ai2d", "chartqa", "docvqa_val"}
    assert [b.task for b in benchmarks_named("nextqa, ai2d,nextqa_mc_test")] == [
        *("nextqa_mc_test", "ai2d")
    ]
    assert lmms_tasks("temporalbench,mmmu_val,ai2d") == [
        *("temporalbench_long_qa", "mmmu_val", "ai2d")
    ]
    assert len(benchmarks_named("all")) == len(lmms_tasks("all")) == len(BENCHMARKS) == 13
    assert benchmark_of("mvbench_action_count").task == "mvbench"
    assert benchmark_of("video_mmmu_perception").task == "video_mmmu"
    assert benchmark_of("nextqa_oe_test") is None and benchmark_of("mmmu_val") is None
    with pytest.raises(ValueError, match="no benchmark 'videomm'; there are videomme"):
        benchmarks_named("videomm")
    for text in ("", " , "):
        with pytest.raises(ValueError, match="named"):
            benchmarks_named(text)
        with pytest.raises(ValueError, match="named"):
            lmms_tasks(text)


def test_folders_by_task():
    home = Path("/h")
    assert offline_folders(["nextqa_mc_test", "ai2d", "mvbench_action_count", "mvbench"], home) == [
        *(home / "nextqa_mc_test_offline", home / "mvbench_offline")
    ]
    assert hf_home({"HF_HOME": "/h"}) == home
    assert hf_home({}) == Path("~/.cache/huggingface").expanduser()


def test_assets_lie_under_the_keys_that_are_looked_up(home, capsys):
    assert benchmark("nextqa") == 0
    out = home / "nextqa_mc_test_offline"
    rows = [json.loads(x) for x in (out / "nextqa_mc_test_videos.jsonl").read_text().splitlines()]
    root = home / "nextqa"
    names = ["NExTVideo/a/clip.mp4", "NExTVideo/b/Other.MP4", "NExTVideo/b/clip.mp4"]
    assert [row["video"] for row in rows] == names
    assert [row["key"] for row in rows] == [key_of({"video": n}, str(root)) for n in names]
    assert sorted(p.name for p in (out / "assets").iterdir()) == sorted(r["key"] for r in rows)
    assert main(["check", str(out), "--keys", str(out / "nextqa_mc_test_videos.jsonl")]) == 0
    found = AssetRoots([str(out)])
    for row in rows:
        asset = found.find(str(root / row["video"]), video_folder(NEXTQA, home))
        assert Path(asset.folder) == out / "assets" / row["key"]
    # Again: everything is there
    stamp = (out / "assets" / rows[0]["key"] / "mosaic_000.jpg").stat().st_mtime_ns
    capsys.readouterr()
    assert benchmark("nextqa") == 0
    assert (out / "assets" / rows[0]["key"] / "mosaic_000.jpg").stat().st_mtime_ns == stamp
    assert "3 videos" in capsys.readouterr().out


def test_assets_made_elsewhere_are_found_from_where_lmms_eval_looks(home, tmp_path):
    elsewhere = tmp_path / "data"
    shutil.move(home / "nextqa", elsewhere)
    assert benchmark("nextqa", "--videos", elsewhere, "--out", tmp_path / "out") == 0
    (home / "nextqa").symlink_to(elsewhere)
    found = AssetRoots([str(tmp_path / "out")])
    video = "NExTVideo/a/clip.mp4"
    root = video_folder(NEXTQA, home)
    asset = found.find(str(root / video), root)
    assert asset is not None and asset == found.find(str(elsewhere / video))
    assert found.find(str(tmp_path / "a" / "clip.mp4"), root) is None
    # The same name, another file
    (home / "nextqa").unlink()
    shutil.copytree(elsewhere, home / "nextqa")
    write_clip(home / "nextqa" / video, frames=20)
    with pytest.raises(PackError, match="was made of a file of"):
        found.find(str(home / "nextqa" / video), root)


def test_a_broken_video_is_listed_and_known_to_whoever_looks_it_up(home):
    broken = home / "nextqa" / "NExTVideo" / "broken.mp4"
    broken.write_bytes(b"no video")
    assert benchmark("nextqa", "--max-failures", 1) == 0
    assert benchmark("nextqa", "--max-failures", 0) == 1
    found = AssetRoots([str(home / "nextqa_mc_test_offline")])
    root = video_folder(NEXTQA, home)
    assert found.find(str(broken), root) is None
    assert "cannot be opened as a video" in found.failure(str(broken), root)
    assert found.failure(str(root / "NExTVideo/a/clip.mp4"), root) is None


def test_keys_of_very_long_names_agree(home):
    video = home / "nextqa" / f"{'x' * 90}.mp4"
    write_clip(video)
    assert benchmark("nextqa") == 0
    found = AssetRoots([str(home / "nextqa_mc_test_offline")])
    assert found.find(str(video), video_folder(NEXTQA, home)) is not None


def test_published_assets_are_found_by_their_list(home, tmp_path):
    assert benchmark("nextqa") == 0
    out, video = tmp_path / "old_offline", home / "nextqa/NExTVideo/a/clip.mp4"
    made = AssetRoots([str(home / "nextqa_mc_test_offline")]).find(str(video), home / "nextqa")
    shutil.copytree(made.folder, out / "assets" / "clip")
    (out / "old_videos.jsonl").write_text(json.dumps({"video": str(video), "key": "clip"}) + "\n")
    cfg = {"seq_len_frames": 8, "num_images": 2, "square_size": 64, "patch_size": 16}
    (out / "assets" / "clip" / "meta.json").write_text(json.dumps({"cfg": cfg}))
    asset = AssetRoots([str(out)]).find(str(video))
    assert Path(asset.folder) == out / "assets" / "clip" and asset.config == cfg
    assert AssetRoots([str(out)]).find(str(home / "nextqa/NExTVideo/b/clip.mp4")) is None


def test_what_cannot_work_is_told_with_its_remedy(home, tmp_path, capsys):
    for arguments, message in (
        (["videomme"], "name their folder with --videos DIR, or let --download fetch lmms-eval/Vi"),
        (["nextqa,videomme", "--videos", tmp_path], "is the folder of one benchmark, not of 2"),
        (["nextqa", "--videos", tmp_path / "none"], "is no folder"),
        (["nothing"], "no benchmark 'nothing'"),
    ):
        assert benchmark(*arguments) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert benchmark("nextqa", "--videos", tmp_path / "empty") == 2
    assert "holds no videos" in capsys.readouterr().err
    # Of several, those that are there are done.
    assert benchmark("ai2d,videomme,nextqa") == 1
    printed = capsys.readouterr()
    assert "ai2d: images, which need no assets" in printed.out and "videomme:" in printed.err
    assert (home / "nextqa_mc_test_offline" / "assets").is_dir()
    with pytest.raises(ValueError, match="does not exist: make it with"):
        AssetRoots([str(tmp_path / "none")])


def test_a_dry_run_makes_nothing(home, capsys):
    assert benchmark("nextqa", "--dry-run") == 0
    assert "3 videos" in capsys.readouterr().out
    assert not (home / "nextqa_mc_test_offline").exists()


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


def lmms(*arguments):
    return main(["lmms", "--dry-run", "--out", "res", *map(str, arguments)])


def test_an_evaluation_finds_assets_by_task(home, capsys):
    common = ["--model", "m", "--tasks", "nextqa,ai2d"]
    assert lmms(*common) == 2
    assert "`codecvit llava benchmark nextqa_mc_test` makes them" in capsys.readouterr().err
    assert lmms(*common, "--on-miss", "pack") == 0
    assert "assets=" not in capsys.readouterr().err
    (home / "nextqa_mc_test_offline").mkdir()
    assert lmms(*common, "--batch-size", 4, "--processes", 2, "--python", "py", "--limit", "8") == 0
    words = capsys.readouterr().err.split()[1:]
    assert words[:7] == [
        "py",
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "2",
        "-m",
        "lmms_eval",
    ]
    options = words[words.index("--model_args") + 1]
    assert options == (
        f"pretrained=m,assets={home}/nextqa_mc_test_offline,on_miss=error,results=res/codecvit,"
        "dtype=bfloat16"
    )
    assert words[words.index("--tasks") + 1] == "nextqa_mc_test,ai2d"
    assert words[words.index("--batch_size") + 1] == "4" and words[-2:] == ["--limit", "8"]
    assert words[words.index("--model") + 1] == "codecvit_llava" and "--log_samples" in words
    assert lmms("--model", "a,b", "--tasks", "ai2d") == 2
    assert "cannot take a comma" in capsys.readouterr().err


@pytest.fixture
def script(root, tmp_path):
    """script(name, variables, *arguments) with a stand-in for codecvit that tells its arguments."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("codecvit", 'printf "%s\\t" codecvit "$@"'), ("nvidia-smi", "echo G")):
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)

    def call(name, variables, *arguments):
        return subprocess.run(
            ["bash", str(root / "scripts/llava" / name), *arguments],
            env={"PATH": f"{programs}:{os.environ['PATH']}", **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return call


def test_scripts_are_thin(script, tmp_path):
    done = script("preprocess_benchmark.sh", {}, "nextqa", "--videos", "my clips")
    assert done.stdout.split("\t")[1:-1] == [
        *("llava", "benchmark", "nextqa", "--videos", "my clips")
    ]
    done = script("preprocess_benchmark.sh", {"DRY_RUN": "1"}, "all")
    assert done.stdout.split("\t")[1:-1] == ["llava", "benchmark", "all", "--dry-run"]
    assert script("preprocess_benchmark.sh", {}).returncode == 1
    variables = {"MODEL": "my model", "TASKS": "nextqa", "ASSETS": "a:b", "DRY_RUN": "1"}
    done = script("eval.sh", variables, "--limit", "8")
    words = done.stdout.split("\t")[1:-1]
    assert words[words.index("--model") + 1] == "my model"
    assert words[words.index("--assets") + 1] == "a:b"
    assert words[words.index("--processes") + 1] == "1" and words[-3:-1] == ["--limit", "8"]
    assert "--dry-run" in words
    done = script("eval.sh", {"DRY_RUN": "1"})
    assert done.returncode == 2 and "MODEL is not set" in done.stderr
    done = script("eval.sh", {"MODEL": "m", "LMMS_VENV": str(tmp_path)})
    assert done.returncode == 2 and "setup_lmms_eval.sh" in done.stderr
    for name in ("eval.sh", "preprocess_benchmark.sh", "setup_lmms_eval.sh", "test_lmms_eval.sh"):
        done = script(name, {}, "--help")
        assert done.returncode == 0 and "bash scripts/llava/" in done.stdout, name
    done = script("test_lmms_eval.sh", {}, "--model", str(tmp_path))
    assert done.returncode == 2 and "--benchmark" in done.stderr


def test_a_local_task_asks_the_same_and_differences_are_told(tmp_path, capsys):
    bench = write_merv(tmp_path / "bench", questions=4)
    command = ["write", "--benchmark", str(bench), "--out", str(tmp_path / "tasks")]
    assert local_task.main(command) == 2  # its questions have an end_frame
    assert "about a part of" in capsys.readouterr().err
    rows = [
        {k: v for k, v in r.items() if k != "end_frame"}
        for r in json.loads((bench / "test_q.json").read_text())
    ]
    (bench / "test_q.json").write_text(json.dumps(rows))
    assert local_task.main(command) == 0
    asked = [json.loads(x) for x in (tmp_path / "tasks/questions.jsonl").read_text().splitlines()]
    assert [a["truth"] for a in asked] == ["A", "B", "C", "A"]
    assert (
        asked[1]["prompt"].startswith("What is number 1?")
        and "B. I don't know" in (asked[1]["prompt"])
    )
    assert (
        json.dumps(str(tmp_path / "tasks/questions.jsonl"))
        in (tmp_path / "tasks/codecvit_local.yaml").read_text()
    )
    own, other = (
        tmp_path / "own",
        tmp_path / "other" / "m" / "20260101_samples_codecvit_local.jsonl",
    )
    questions = made_questions(4)
    run_all(questions, StandIn(questions), own)
    from codecvit.llava.mcq.merge import merge

    merge(own)
    replies = [q.letters[q.answer] for q in questions]
    other.parent.mkdir(parents=True)

    def samples(replies):
        lines = [
            {"doc_id": i, "doc": {"index": i}, "filtered_resps": [r]} for i, r in enumerate(replies)
        ]
        other.write_text("".join(json.dumps(line) + "\n" for line in lines))

    samples(replies)
    both = ["compare", str(own), str(tmp_path / "other")]
    assert local_task.main(both) == 0 and "4 of 4" in capsys.readouterr().out
    samples([*replies[:3], "x"])
    assert local_task.main(both) == 1 and "question 3" in capsys.readouterr().out
    samples(replies[:3])
    assert local_task.main(both) == 2 and "has 3" in capsys.readouterr().err
