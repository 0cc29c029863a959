"""The lmms-eval plugin against a small stand-in of lmms-eval's interface."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import tomllib
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codecvit.codec.llava.cli import main
from codecvit.codec.llava.keys import key_of
from codecvit.llava.benchmarks.settings import read_settings
from codecvit.llava.mcq.merge import read_results
from codecvit.llava.mcq.parse import strategy_named
from codecvit.llava.mcq.questions import read_questions

from .mcq_made import write_clip, write_merv
from .several import make_several

PACKING = ["--num-frames", "16", "--num-images", "3", "--size", "64"]
SMALL = {"num_frames": 16, "num_images": 3, "size": 64}
MODULE = "codecvit.llava.benchmarks.lmms_model"

STAND_IN = {
    "lmms_eval/__init__.py": "",
    "lmms_eval/api/__init__.py": "",
    "lmms_eval/api/model.py": """
import abc

class Hook:
    def __init__(self):
        self.seen = []
    def add_partial(self, attr, req, res):
        self.seen.append((attr, req, res))

class lmms(abc.ABC):
    def __init__(self):
        self._rank, self._world_size, self.cache_hook, self.task_dict = 0, 1, Hook(), {}
    rank = property(lambda self: self._rank)
    @abc.abstractmethod
    def loglikelihood(self, requests): ...
    @abc.abstractmethod
    def generate_until(self, requests): ...
    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...
""",
    "lmms_eval/api/instance.py": "class Instance: ...\n",
    "lmms_eval/models/__init__.py": "",
    "lmms_eval/models/registry_v2.py": """
import dataclasses

@dataclasses.dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple = ()
""",
}


@pytest.fixture(scope="module")
def saved(make_model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_model(pool_level=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Two clips in folders, 4 questions about them, and their assets."""
    folder = tmp_path_factory.mktemp("bench")
    write_merv(folder, questions=4, videos=2)
    rows = json.loads((folder / "test_q.json").read_text())
    for row in rows:
        del row["end_frame"]
    (folder / "test_q.json").write_text(json.dumps(rows))
    for number in range(2):
        write_clip(folder / "videos" / f"video_{10336 + number}.mp4", frames=20 + 4 * number)
    listing = folder / "list.jsonl"
    assert main(["eval", "--benchmark", str(folder), "--list-videos", str(listing)]) == 0
    arguments = ["assets", "--jsonl", listing, "--root", folder, "--out", folder / "made"]
    assert main([*map(str, arguments), "--workers", "0", *PACKING]) == 0
    return folder


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The module of the plugin, on the stand-in; no variable of the published code is set."""
    for name, text in STAND_IN.items():
        path = tmp_path / "stand_in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "stand_in"))
    for name in [n for n in sys.modules if n.split(".")[0] == "lmms_eval" or n == MODULE]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    yield importlib.import_module(MODULE)
    for name in [n for n in sys.modules if n.split(".")[0] == "lmms_eval" or n == MODULE]:
        del sys.modules[name]


@pytest.fixture
def make(plugin, saved, bench, tmp_path):
    """options -> the model, in float32 on the CPU."""

    def build(**options):
        options = {
            "pretrained": str(saved),
            "assets": str(bench / "made"),
            "video_root": str(bench),
            "results": str(tmp_path / "results"),
            "dtype": "float32",
            "device": "cpu",
            **options,
        }
        return plugin.CodecVitLlava(**options)

    return build


def ask(model, docs, method="generate_until", task="mine", **options):
    """Puts documents ({"show", "text"}) through a method, as the evaluator does."""
    model.task_dict[task] = {"test": docs}
    second = [{"max_new_tokens": 6, **options} if method == "generate_until" else d for d in docs]
    if method == "loglikelihood":
        second = [lambda doc: doc["target"] for _ in docs]
    requests = [
        types.SimpleNamespace(
            args=(doc["text"], second[i], lambda doc: doc["show"], i, task, "test")
        )
        for i, doc in enumerate(docs)
    ]
    return getattr(model, method)(requests)


def video_docs(bench):
    questions = read_questions(str(bench), None)[0]
    strategy = strategy_named("letter")
    return [
        {"show": [str(bench / q.video)], "text": strategy.prompt(q), "id": q.id} for q in questions
    ]


def results(folder):
    folder = Path(folder)
    records = [json.loads(x) for x in (folder / "requests-rank0.jsonl").read_text().splitlines()]
    return json.loads((folder / "visuals-rank0.json").read_text()), records


def test_the_entry_point_gives_the_manifest_and_imports_lmms_eval_only_then(plugin, root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    value = project["entry-points"]["lmms_eval.models"]["codecvit_llava"]
    found = EntryPoint("codecvit_llava", value, "lmms_eval.models").load()()
    assert found.model_id == "codecvit_llava" and found.chat_class_path is None
    module, name = found.simple_class_path.rsplit(".", 1)
    model = getattr(importlib.import_module(module), name)
    base = sys.modules["lmms_eval.api.model"].lmms
    assert issubclass(model, base) and model.is_simple and not model.__abstractmethods__
    code = (
        "import sys, codecvit.llava.benchmarks.lmms_plugin; "
        "assert not {'lmms_eval', 'torch', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_replies_are_those_of_our_own_runner(make, bench, saved, tmp_path):
    out = tmp_path / "own"
    arguments = ["eval", "--model", saved, "--benchmark", bench, "--out", out]
    arguments += ["--assets", bench / "made", "--dtype", "float32", "--device", "cpu"]
    assert main([*map(str, arguments), "--max-new-tokens", "6", *PACKING]) == 0
    _, own = read_results(out)
    docs = video_docs(bench)
    assert ask(make(), docs) == [record["reply"] for record in own]
    summary, records = results(tmp_path / "results")
    assert [(r["visual_tokens"], r["text_tokens"]) for r in records] == [
        (r["visual_tokens"], r["text_tokens"]) for r in own
    ]
    assert summary["tasks"]["mine"]["sources"] == {"hit": 4}
    assert summary["visuals"]["videos"] == {"hit": 2}
    assert summary["tasks"]["mine"]["visual_tokens"] == pytest.approx(
        np.mean([r["visual_tokens"] for r in own]), abs=0.01
    )


def test_a_model_of_several_encoders_gets_its_frames(make, bench, encoders, tokenizer, tmp_path):
    """Replies are those of our own runner, images have a frame; frames alone are refused."""
    for name, sources in (("two", encoders), ("frames", encoders[1:])):
        make_several(sources).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    out = tmp_path / "own"
    arguments = ["eval", "--model", tmp_path / "two", "--benchmark", bench, "--out", out]
    arguments += ["--assets", bench / "made", "--dtype", "float32", "--device", "cpu"]
    assert main([*map(str, arguments), "--max-new-tokens", "6", *PACKING]) == 0
    docs = video_docs(bench)
    model = make(pretrained=str(tmp_path / "two"))
    assert ask(model, docs) == [record["reply"] for record in read_results(out)[1]]
    picture = Image.new("RGB", (16, 16))
    (reply,) = ask(model, [{"show": [picture], "text": "What?"}])
    assert isinstance(reply, str)
    assert results(tmp_path / "results")[1][-1]["status"] == "ok"
    with pytest.raises(SystemExit):
        make(pretrained=str(tmp_path / "frames"))


def test_videos_images_and_text_in_one_batch_are_answered_as_alone(make, bench, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    video = video_docs(bench)[0]["show"]
    docs = [
        {"show": video, "text": "What moves?"},
        {"show": None, "text": "Say something."},
        {"show": [picture], "text": "What is it?"},
        {"show": [picture, picture], "text": "<image> or <image>?"},
        {"show": str(tmp_path / "a.png"), "text": "What is it?"},
        {"show": [], "text": "Say something else."},
        {"show": video[0], "text": "What moves?"},  # a bare path, as TemporalBench has it
    ]
    together = ask(make(batch_size=4), docs)
    assert together == [ask(make(results="none"), [doc])[0] for doc in docs]
    assert together[0] == together[6] and together[2] == together[4]
    _, records = results(tmp_path / "results")
    assert [r["sources"] for r in records] == [
        *(["hit"], ["text"], ["image"], ["image", "image"], ["image"], ["text"], ["hit"])
    ]
    assert records[1]["visual_tokens"] == 0 < records[2]["visual_tokens"]
    assert records[3]["visual_tokens"] == 2 * records[2]["visual_tokens"]


def test_loglikelihood_is_the_models(make, bench):
    docs = [{**doc, "target": f" {x}"} for doc in video_docs(bench)[:1] for x in ("A", "B", "AB")]
    model = make(batch_size=3)
    scores = ask(model, docs, "loglikelihood")
    asked = [
        *(model._answerer, strategy_named("letter")),
        read_questions(str(bench), None)[0][0],
        model._shown.load(docs[0]["show"][0])[0],
    ]
    answerer, strategy, question, visual = asked
    from codecvit.llava.mcq.runner import Asked

    expected = answerer.loglik([Asked(strategy.prompt(question), visual, "AB")])[0].scores
    assert [scores[0][0], scores[1][0]] == pytest.approx(expected, abs=1e-4)
    assert scores[2][0] < scores[0][0]  # one more letter
    # Greedy generation says what has the highest probability, and only that is marked.
    reply = ask(model, docs[:1], max_new_tokens=1)[0]
    if reply.strip():
        assert ask(model, [{**docs[0], "target": reply}], "loglikelihood")[0][1]
    assert sum(greedy for _, greedy in scores[:2]) <= 1


def test_a_missing_asset_stops_the_run_before_its_first_question(make, bench, tmp_path, capsys):
    shutil.copytree(bench / "made", tmp_path / "made")
    key = key_of({"video": "videos/video_10337.mp4"}, str(bench))
    shutil.rmtree(tmp_path / "made" / "assets" / key)
    model = make(assets=str(tmp_path / "made"))
    model._answerer.converse = pytest.fail
    with pytest.raises(SystemExit, match=r"1 of 2 videos have no usable[^\0]*video_10337.mp4: no "):
        ask(model, video_docs(bench))
    assert not (tmp_path / "results").exists()
    # Packed now, it is what its asset would have been.
    packed = make(assets=str(tmp_path / "made"), on_miss="pack", debug=1)
    replies = ask(packed, video_docs(bench))
    summary, records = results(tmp_path / "results")
    assert summary["tasks"]["mine"]["sources"] == {"hit": 2, "packed": 2}
    assert "PACKED" in capsys.readouterr().err
    assert replies == ask(make(results="none"), video_docs(bench))
    # Whole frames have to be asked for, and have as many tokens before pooling.
    frames = make(assets=str(tmp_path / "made"), on_miss="frames")
    ask(frames, video_docs(bench))
    summary, _ = results(tmp_path / "results")
    assert summary["tasks"]["mine"]["sources"] == {"hit": 2, "miss": 2}
    assert summary["visuals"]["frames"]["num_frames"] == 3
    path = str(bench / "videos" / "video_10337.mp4")
    visuals = [m._shown.load(path)[0] for m in (frames, packed)]
    assert len(visuals[0]) == len(visuals[1]) and len(set(visuals[0].positions[:, 0])) == 3


def test_an_asset_that_does_not_fit_stops_the_run_whatever_was_asked_for(make, bench, tmp_path):
    docs = video_docs(bench)
    shutil.copytree(bench, tmp_path / "bench")
    docs = [
        {**d, "show": [d["show"][0].replace(str(bench), str(tmp_path / "bench"))]} for d in docs
    ]
    options = {"assets": str(tmp_path / "bench/made"), "video_root": str(tmp_path / "bench")}
    ask(make(**options), docs)  # moved with its videos, it fits
    write_clip(tmp_path / "bench/videos/video_10336.mp4", frames=30)
    for on_miss in ("error", "pack"):
        with pytest.raises(SystemExit, match="was made of a file of"):
            ask(make(**options, on_miss=on_miss), docs)
    shutil.copy(bench / "videos/video_10336.mp4", tmp_path / "bench/videos/video_10336.mp4")
    next((tmp_path / "bench/made/assets").glob("video_10337*/mosaic_000.*")).unlink()
    with pytest.raises(SystemExit, match="mosaic_000.*is missing"):
        ask(make(**options, on_miss="pack"), docs)
    next((tmp_path / "bench/made/assets").glob("video_10336*/meta.json")).write_text("{")
    with pytest.raises(SystemExit, match="2 assets don't fit"):
        ask(make(**options, on_miss="frames"), docs)


def test_keys_of_other_folders_are_never_taken(make, bench, tmp_path):
    other = tmp_path / "elsewhere" / "video_10336.mp4"
    other.parent.mkdir()
    shutil.copy(bench / "videos/video_10336.mp4", other)
    with pytest.raises(SystemExit, match="no asset"):
        ask(make(), [{"show": [str(other)], "text": "What?"}])


def test_several_roots_are_looked_through(make, bench, tmp_path):
    for number in range(2):
        source = next((bench / "made/assets").glob(f"video_{10336 + number}*"))
        shutil.copytree(source, tmp_path / f"part{number}_offline" / "assets" / source.name)
    parts = [str(tmp_path / f"part{number}_offline") for number in range(2)]
    docs = video_docs(bench)
    expected = ask(make(results="none"), docs)
    for assets in (":".join(parts), str(tmp_path)):
        assert ask(make(assets=assets), docs) == expected
        assert results(tmp_path / "results")[0]["visuals"]["videos"] == {"hit": 2}
    with pytest.raises(SystemExit, match="no asset"):
        ask(make(assets=parts[0]), docs)


def test_broken_videos_and_broken_requests_are_counted_not_hidden(make, bench, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    docs = [
        {"show": [str(tmp_path / "broken.mp4")], "text": "What?"},
        {"show": None, "text": "x" * 2000},
        {"show": None, "text": "Say something."},
    ]
    model = make(assets=None, on_miss="pack", batch_size=3, **SMALL)
    replies = ask(model, docs)
    assert replies[:2] == ["", ""]
    summary, records = results(tmp_path / "results")
    assert [r["status"] for r in records] == ["decode_error", "gen_error", "ok"]
    assert summary["tasks"]["mine"]["statuses"] == {"decode_error": 1, "gen_error": 1, "ok": 1}
    assert "broken.mp4" in records[0]["error"] and "max_length" in records[1]["error"]
    assert "broken.mp4" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="21 times"):
        ask(model, [docs[1]] * 21)


def test_what_a_task_asks_for_is_done_or_refused(make, bench):
    model, docs = make(results="none"), [{"show": None, "text": "Say something."}]
    whole = ask(model, docs, max_new_tokens=20)[0]
    assert (
        ask(model, docs, max_new_tokens=20, until=[whole[3]])[0] == whole[: whole.index(whole[3])]
    )
    greedy = ask(model, docs, temperature=0, top_p=1.0, num_beams=1, do_sample=False)
    assert greedy == ask(model, docs) == ask(model, docs, temperature=0.7, do_sample=False)
    for options, message in (
        ({"do_sample": True}, "replies are greedy"),
        ({"num_beams": 5}, "num_beams = 5, but replies are greedy"),
        ({"temperature": 0.7}, "temperature = 0.7, but replies are greedy"),
        ({"num_frames": 5}, "num_frames, unknown here"),
    ):
        with pytest.raises(SystemExit, match=message):
            ask(model, docs, **options)
    with pytest.raises(SystemExit, match="shows a dict"):
        ask(model, [{"show": [{"array": 0}], "text": "Hear?"}])
    with pytest.raises(SystemExit, match="several rounds"):
        model.generate_until_multi_round([])
    for options in ({"batch_size": "auto"}, {"batch_size": 0}, {"max_batch_size": 4}):
        with pytest.raises(SystemExit, match="give batch_size alone"):
            make(**options)


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


def test_the_models_training_decides(plugin, make, saved, bench, tmp_path):
    for path in saved.iterdir():
        shutil.copy(path, tmp_path / path.name)
    config = json.loads((saved / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "assets_hash": "0123456789abcdef"}))
    with pytest.raises(SystemExit, match="0123456789abcdef: the model's training"):
        ask(make(pretrained=str(tmp_path)), video_docs(bench))
