"""The page shows what was read and answered, alone in one file, and runs nothing of a data set."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import re
import shutil
import subprocess
import tomllib

import numpy as np
import pytest
from PIL import Image

from codecvit.codec.llava.cli import main
from codecvit.codec.llava.options import MosaicOptions
from codecvit.llava.mcq.merge import merge, read_results
from codecvit.llava.mcq.parse import strategy_named
from codecvit.llava.mcq.questions import read_questions
from codecvit.llava.mcq.runner import describe_run, run_chunk
from codecvit.llava.mcq.sources import Sources
from codecvit.llava.report.page import build_page

from .mcq_made import StandIn, write_clip, write_merv

OPTIONS = MosaicOptions(num_frames=16, num_images=3, size=64)
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>&amp; @DATA@"


class Rambling(StandIn):
    """Replies with what could break a page."""

    def generate(self, asked):
        return [type(a)(9, 9, reply=f"{a.reply}{HOSTILE}") for a in super().generate(asked)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """9 questions on 3 videos, one of which is missing; hostile texts wherever there are texts."""
    folder = write_merv(tmp_path_factory.mktemp("b") / "bench <i>", questions=9, videos=3)
    for name in (10336, 10337):
        write_clip(folder / "videos" / f"video_{name}.mp4", frames=24)
    rows = json.loads((folder / "test_q.json").read_text())
    for i, row in enumerate(rows):
        row["task"] = ("Where <b>to</b>", "What")[i % 2]
        row["question"] += HOSTILE
        row["options"][0] += "<b>bold</b>"
    (folder / "test_q.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def runs(bench, tmp_path_factory):
    """Folders of three runs: codec with scores, whole frames with scores, rambling replies."""
    out = tmp_path_factory.mktemp("runs")
    questions, _ = read_questions(bench)
    for name, on_miss, answerer, strategy in (
        ("codec", "pack", StandIn(questions, "truth"), "loglik"),
        ("frames", "frames", StandIn(questions, "hash"), "loglik"),
        ("rambling", "pack", Rambling(questions, "truth"), "letter"),
    ):
        sources = Sources(str(bench), None, OPTIONS, on_miss)
        sources.plan(questions)
        rule = strategy_named(strategy)
        benchmark = {"path": str(bench), "format": "merv"}
        run = describe_run(questions, benchmark, sources, answerer, rule)
        run_chunk(questions, sources, answerer, rule, out / name, run)
        merge(out / name)
    return out


def page_of(runs, *names, **options):
    return build_page([(name, *read_results(runs / name)) for name in names], **options)


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def test_one_file_without_outside_resources(runs):
    page = page_of(runs, "codec", "frames")
    for name in ("src", "href", "action", "@import", "url("):
        assert not re.search(rf"(?<![\w-]){re.escape(name)}\s*=?\s*[\"'(]?\s*(?:https?:|//)", page)
    assert not re.search(r"<(?:link|iframe|object|embed|base|form)\b", page)
    assert "default-src 'none'; img-src data:;" in page


def test_only_the_pages_own_script_may_run(runs):
    page = page_of(runs, "rambling", title=HOSTILE)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


@pytest.mark.parametrize("names", [("rambling",), ("codec", "frames"), ("codec", "rambling")])
def test_texts_are_never_tags(runs, names):
    page, plain = (page_of(runs, *names, title=t) for t in (HOSTILE, "title"))
    found, expected = Tags(), Tags()
    found.feed(page)
    expected.feed(plain)
    assert found.found == expected.found
    assert found.found.count("script") == 2 and not {"img", "b", "i"} & set(found.found)
    questions = data_of(page)["questions"]
    assert all(q["text"].endswith(HOSTILE) for q in questions)
    assert questions[0]["options"][0].endswith("<b>bold</b>")
    assert {q["task"] for q in questions} == {"Where <b>to</b>", "What"}
    if names[-1] == "rambling":
        assert questions[0]["answers"][-1]["reply"].endswith(HOSTILE)


def test_answers_and_figures_are_those_of_the_run(runs):
    data = data_of(page_of(runs, "codec", "frames"))
    _, first = read_results(runs / "codec")
    assert data["runs"][0]["figures"]["coverage"] == pytest.approx(6 / 9)
    for question, record in zip(data["questions"], first, strict=True):
        assert question["id"] == record["id"] and question["answer"] == record["answer"]
        assert question["answers"][0]["scores"] == record["scores"]
        assert question["answers"][0]["status"] == record["status"]
    compared = data["compare"]
    assert compared["gained"] == 0 and sum(compared[n] for n in ("both", "neither", "lost")) == 9
    lost = sum(q["answers"][0]["correct"] > q["answers"][1]["correct"] for q in data["questions"])
    assert compared["lost"] == lost > 0


def test_lit_patches_are_those_that_the_model_read(runs, bench):
    data = data_of(page_of(runs, "codec"))
    questions, _ = read_questions(bench)
    sources = Sources(str(bench), None, OPTIONS, "pack")
    sources.plan(questions)
    visual, _ = sources.load(questions[0])
    picture = data["pictures"][data["questions"][0]["pictures"][0]]
    assert picture["whole"] and picture["patches"] == len(np.unique(visual.positions, axis=0))
    assert (picture["samples"], picture["frames"], len(picture["seconds"])) == (16, 12, 12)
    slots = np.unique(visual.positions[:, 0])
    shown = np.linspace(0, 15, 12).round().astype(int)
    for frame, sample in zip(picture["read"], shown, strict=True):
        slot = round(sample * 63 / 15)
        places = visual.positions[visual.positions[:, 0] == slot][:, 1:]
        # Rows 0.. of the view without its black bars: 64 x 48 in a square leaves rows 0 and 3 half.
        lit = np.array([*frame], int).reshape(picture["rows"], picture["columns"])
        assert lit.sum() == len(np.unique(places, axis=0)), slot
        assert slot in slots or lit.sum() == 0
    assert picture["read"][0].count("0") == 0  # the first frame is read whole


def test_frames_are_those_of_the_video(runs):
    data = data_of(page_of(runs, "frames"))
    picture = data["pictures"][data["questions"][0]["pictures"][0]]
    strip = base64.b64decode(picture["strip"].removeprefix("data:image/jpeg;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(strip))).astype(int)
    width = picture["width"]
    assert pixels.shape == (picture["height"], 3 * width, 3)
    assert all(set(frame) == {"1"} for frame in picture["read"])
    # The yellow square goes right.
    yellow = (pixels[..., 0] > 180) & (pixels[..., 2] < 120)
    centres = [np.nonzero(yellow[:, k * width : (k + 1) * width])[1].mean() for k in range(3)]
    assert centres[0] < 50 and centres[0] < centres[1] < centres[2] and centres[2] > 170


def test_two_runs_share_pictures_of_what_was_the_same(runs):
    same = data_of(page_of(runs, "codec", "rambling"))
    assert all(q["pictures"][0] == q["pictures"][1] for q in same["questions"])
    assert len(same["pictures"]) == 2
    other = data_of(page_of(runs, "codec", "frames"))
    assert len(other["pictures"]) == 4
    assert {type(p) for p in other["questions"][2]["pictures"]} == {str}  # why there is none
    assert "does not exist" in other["questions"][2]["pictures"][0]


def test_pictures_left_out_are_those_of_least_interest(runs):
    assert data_of(page_of(runs, "codec", pictures=0))["pictures"] == []
    data = data_of(page_of(runs, "codec", "frames", pictures=1))
    seen = {q["video"] for q in data["questions"] if isinstance(q["pictures"][0], int)}
    assert len(seen) == 1
    flipped = [
        q for q in data["questions"] if q["answers"][0]["correct"] != q["answers"][1]["correct"]
    ]
    assert flipped[0]["video"] in seen
    assert None in [p for q in data["questions"] for p in q["pictures"]]


def test_without_the_video_the_assets_are_shown(bench, tmp_path, capsys):
    folder = tmp_path / "bench"
    shutil.copytree(bench, folder)
    questions, _ = read_questions(folder)
    listed, assets, out = tmp_path / "videos.jsonl", tmp_path / "assets", tmp_path / "out"
    flags = ["--num-frames", "16", "--num-images", "3", "--size", "64", "--workers", "0"]
    verb = ["eval", "--benchmark", folder, "--list-videos", listed]
    assert main([*map(str, verb)]) == 0
    verb = ["assets", "--jsonl", listed, "--root", folder, "--out", assets, *flags]
    assert main([*map(str, verb)]) == 0
    sources = Sources(str(folder), str(assets), OPTIONS)
    sources.plan(questions)
    answerer, rule = StandIn(questions), strategy_named("letter")
    run = describe_run(questions, {"path": str(folder), "format": "merv"}, sources, answerer, rule)
    run_chunk(questions, sources, answerer, rule, out, run)
    merge(out)
    whole = data_of(build_page([("out", *read_results(out))]))["pictures"]
    shutil.rmtree(folder / "videos")
    gone = data_of(build_page([("out", *read_results(out))]))["pictures"]
    assert [p["whole"] for p in whole] == [True, True]
    assert [p["whole"] for p in gone] == [False, False]
    for a, b in zip(whole, gone, strict=True):
        assert (a["patches"], a["seconds"]) == (b["patches"], b["seconds"])
    # Moved data are found where they are said to be.
    moved = tmp_path / "moved"
    shutil.copytree(bench, moved)
    page = tmp_path / "page.html"
    assert main(["report", str(out), "--out", str(page), "--benchmark", str(moved)]) == 0
    assert [p["whole"] for p in data_of(page.read_text())["pictures"]] == [True, True]
    assert "9 questions" in capsys.readouterr().out


def test_what_cannot_be_shown_is_told(runs, tmp_path, capsys):
    page = str(tmp_path / "page.html")
    results = [str(runs / name) for name in ("codec", "frames", "rambling")]
    assert main(["report", *results, "--out", page]) == 2
    assert "3 results" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--out", page]) == 2
    assert "holds no run.json" in capsys.readouterr().err
    unmerged = tmp_path / "unmerged"
    shutil.copytree(runs / "codec", unmerged)
    (unmerged / "results.jsonl").unlink()
    assert main(["report", str(unmerged), "--out", page]) == 2
    assert "--merge --out" in capsys.readouterr().err


def test_a_browser_draws_it_and_runs_nothing_else(runs, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium")
    path = tmp_path / "page.html"
    path.write_text(page_of(runs, "codec", "rambling", title="mine"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000"]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120)
    dom = done.stdout
    assert "<title>mine</title>" in dom and dom.count("<article") == 9
    assert "&lt;b&gt;bold&lt;/b&gt;" in dom and "<b>bold" not in dom
    assert "<img" not in dom and dom.count("<canvas") > 20


def test_the_template_ships_with_the_package(root):
    """An editable install would hide that it does not."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    shipped = project["tool"]["setuptools"]["package-data"]["codecvit.llava.report"]
    files = {
        p.name for p in (root / "src" / "llava" / "report").iterdir() if p.suffix not in (".py", "")
    }
    assert files == set(shipped) == {"page.html"}
