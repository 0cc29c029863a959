"""The page itself: a real server on a free port, asked over HTTP; and a real browser."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from codecvit.codec.llava.options import MosaicOptions
from codecvit.llava.chat.session import Conversation, Decoding
from codecvit.llava.chat.sight import Reader
from codecvit.llava.chat.uploads import Limits
from codecvit.llava.chat.web import serve
from codecvit.llava.mcq.answer import ModelAnswerer

from .made import write_image
from .mcq_made import write_clip
from .web_client import WebClient

pytest.importorskip("gradio", reason="the extra `web` is not installed")

OPTIONS = MosaicOptions(num_frames=8, num_images=2, size=32, patch=4)
LIMITS = Limits(bytes=200_000, seconds=10)
GREEDY = Decoding(max_new_tokens=9)


@pytest.fixture(scope="module")
def answerer(make_model, tokenizer):
    return ModelAnswerer(make_model(), tokenizer)


@pytest.fixture(scope="module")
def address(answerer):
    """Of a page that somebody's environment would like to open to the world."""
    before = dict(os.environ)
    os.environ.update(GRADIO_ALLOWED_PATHS="/", GRADIO_SHARE="True", GRADIO_MCP_SERVER="True")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serve(Reader(answerer, OPTIONS), "tiny", GREEDY, LIMITS, port=port, queue=2) as found:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        yield found
    os.environ.clear()
    os.environ.update(before)
    assert not folder.exists()


@pytest.fixture
def tab(address):
    return WebClient(address)


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4")


def texts(chat):
    """(role, text) of each message."""
    return [(m["role"], "".join(part["text"] for part in m["content"])) for m in chat]


def test_a_video_is_dropped_and_talked_about(tab, clip, answerer):
    ok, outputs = tab.drop("<b>holiday.mp4", clip.read_bytes())
    assert ok
    (zone, _, frames, chat) = outputs[-1]
    assert zone is None and chat == []
    assert "128 patches of 4 x 4 pixels read of 8 frames" in frames and "<b>holiday" not in frames
    assert frames.count("<figure>") == 8
    assert not list(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*.mp4"))  # read, and gone
    alone = Conversation(answerer, Reader(answerer, OPTIONS).read(clip))
    said = []
    for question in ("What moves?", "Where to?"):
        ok, outputs = tab.call("ask", question, None, 0, 9)
        assert ok and outputs[-1][0] == ""
        said += [("user", question), ("assistant", [*alone.ask(question, GREEDY)][-1].strip())]
        assert texts(outputs[-1][1]) == said
        assert len(outputs) > 3  # it came bit by bit
    ok, outputs = tab.call("begin_anew", None)
    assert ok and outputs[-1][1] == []
    ok, outputs = tab.call("ask", "What moves?", None, 0, 9)
    assert texts(outputs[-1][1]) == said[:2]


def test_sessions_know_nothing_of_each_other(address, tab, clip):
    assert tab.drop("clip.mp4", clip.read_bytes())[0]
    ok, told = WebClient(address).call("ask", "What?", None, 0, 9)
    assert not ok and told["error"] == "drop a video or an image first"


def test_what_cannot_be_is_told_without_places_of_the_server(tab, clip, tmp_path):
    image = write_image(tmp_path / "a.png", 3, 20, 28).read_bytes()
    for name, content, message in (
        ("notes.txt", b"hello", "Invalid file type"),
        ("list.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n", "list.mp4 is no video"),
        ("broken.mp4", clip.read_bytes()[:300], "broken.mp4"),
        ("a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n", "a.jpg is no image"),
    ):
        ok, told = tab.drop(name, content)
        assert not ok and message in told["error"], told
        assert "/tmp" not in told["error"] and os.environ["GRADIO_TEMP_DIR"] not in told["error"]
    assert tab.drop("a.png", image)[0]
    for question, temperature, tokens in ((" ", 0, 9), ("<video>", 0, 9), ("Why?", 3, 9)):
        assert not tab.call("ask", question, None, temperature, tokens)[0]


def test_no_file_of_the_server_can_be_read(tab, address, clip):
    status, path = tab.upload("clip.mp4", clip.read_bytes())
    assert status == 200
    for asked in (
        "/file=/etc/passwd",
        "/file/etc/passwd",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=%2Fetc%2Fpasswd",
        "/gradio_api/file=file:///etc/passwd",
        f"/gradio_api/file={path}",  # not even an upload
        f"/gradio_api/file={path}/../../../../../etc/passwd",
        "/gradio_api/file//etc/passwd",
        "/gradio_api/stream/../../etc/passwd",
        "/static/../../../../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/assets//etc/passwd",
        "/static//etc/passwd",
        "//etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/runs",
        "/gradio_api/mcp/",
        "/monitoring",
        "/docs",
    ):
        status, body = tab.get(asked)
        assert status in (400, 404) and b"root:" not in body, asked
    for method in ("POST", "PUT"):
        for asked in ("/gradio_api/run/ask", "/gradio_api/call/ask", "/gradio_api/vibe-edit"):
            assert tab.request(method, asked, b"{}")[0] == 404
    for named in ("/etc/passwd", f"{path}/../../../etc/passwd", "http://127.0.0.1:1/a.mp4"):
        file = {"path": named, "orig_name": "a.mp4", "meta": {"_type": "gradio.FileData"}}
        status, told = tab.join("drop", file)
        assert status == 403 and "no upload" in told
    status, path = tab.upload("../../../../tmp/escaped.mp4", clip.read_bytes())
    assert Path(path).is_relative_to(os.environ["GRADIO_TEMP_DIR"]) and ".." not in path
    assert WebClient(address, host="evil.example").get("/")[0] == 421
    config = json.loads(tab.get("/config")[1])
    assert not config.get("analytics_enabled") and not config.get("share_url")
    assert tab.request("GET", "/", headers={"Origin": "http://evil.example"})[1].get(
        "access-control-allow-origin"
    ) in (None, address.rstrip("/"))


def test_uploads_and_the_queue_are_bounded(address, tab, clip):
    status, told = tab.upload("large.mp4", b"x" * 300_000)
    assert status == 413
    tabs = [WebClient(address) for _ in range(3)]
    # One is worked on, two wait; what does not fit is refused, and nothing is lost.
    for one in tabs:
        assert one.drop("clip.mp4", clip.read_bytes())[0]
    hold, asked = threading.Event(), []
    original = Conversation.ask

    def slow(self, question, decoding):
        asked.append(question)
        assert hold.wait(30)
        yield from original(self, question, decoding)

    Conversation.ask = slow
    try:
        found = [one.join("ask", "What?", None, 0, 3)[0] for one in tabs]
        found += [tabs[0].join("ask", "More?", None, 0, 3)[0] for _ in range(3)]
        assert 503 in found and found[:2] == [200, 200]
        assert len(asked) <= 1
        hold.set()
        for one, status in zip(tabs, found, strict=False):
            assert status != 200 or one.events()[-1]["msg"] in ("process_completed", "close_stream")
    finally:
        hold.set()
        Conversation.ask = original


@pytest.mark.slow
def test_a_browser_drops_a_video_asks_and_sees_the_answer(root, make_model, tokenizer, tmp_path):
    import shutil

    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("no Chromium or Chrome is here")
    make_model().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    clip = write_clip(tmp_path / "clip.mp4")
    answerer = ModelAnswerer.load(tmp_path / "tiny", "cpu", "float32")
    alone = Conversation(answerer, Reader(answerer, OPTIONS).read(clip))
    questions = ("What moves?", "Where to?")
    expected = [[*alone.ask(question, GREEDY)][-1].strip() for question in questions]
    command = [sys.executable, root / "scripts" / "llava" / "web_picture.py", tmp_path / "tiny"]
    command += [clip, "--out", tmp_path / "page.png"]
    command += [word for question in questions for word in ("--ask", question)]
    command += ["--", "--num-frames", "8", "--num-images", "2", "--size", "32", "--patch", "4"]
    command += ["--dtype", "float32", "--device", "cpu", "--max-new-tokens", "9"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["frames"] == 8 and seen["veils"] == 7 and seen["asked"] == list(questions)
    # Control characters of a random model's bytes are not what a browser shows.
    words = [" ".join("".join(filter(str.isprintable, text)).split()) for text in seen["answers"]]
    assert words == [" ".join("".join(filter(str.isprintable, t)).split()) for t in expected]
    assert seen["foreign"] == [] and seen["complaints"] == [] and seen["toasts"] == []
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
