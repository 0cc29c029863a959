"""What the page's server lets through, what it reads of uploads, and what it shows of them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import html
import io
import json
import os
import re
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codecvit.codec.container import open_video
from codecvit.codec.llava.cli import main
from codecvit.llava.chat import web
from codecvit.llava.chat.frames import frames_html
from codecvit.llava.chat.guard import Guard, is_below, is_loopback
from codecvit.llava.chat.session import Decoding
from codecvit.llava.chat.uploads import Limits, UploadError, check_upload, sweep
from codecvit.llava.report.pictures import Picture

from .made import moving, write_image, write_video
from .mcq_made import write_clip

API = "/gradio_api"


@pytest.fixture
def uploads(tmp_path):
    (tmp_path / "up" / "abc").mkdir(parents=True)
    (tmp_path / "up" / "abc" / "clip.mp4").write_bytes(b"x")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "up" / "link.mp4").symlink_to(tmp_path / "secret.txt")
    return tmp_path / "up"


@pytest.fixture
def ask(uploads):
    """(method, path, body, headers) -> status, what the app behind the guard was given, headers."""

    def request(method, path, body=b"", host="127.0.0.1:7860", any_host=False, length=True):
        heard, sent = [], []

        async def app(scope, receive, send):
            message = await receive()
            heard.append(message.get("body"))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"here"})

        # In two pieces, as bodies come.
        unread = [{"type": "http.request", "body": body[3:], "more_body": False}]
        unread.append({"type": "http.request", "body": body[:3], "more_body": True})

        async def receive():
            return unread.pop() if unread else {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        headers = [(b"host", host.encode())]
        if length:
            headers.append((b"content-length", str(len(body)).encode()))
        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        asyncio.run(Guard(app, uploads, 1000, any_host)(scope, receive, send))
        return sent[0]["status"], heard, dict(sent[0]["headers"])

    return request


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/assets/index-123.js", 200),
        ("GET", "/static/fonts/x.woff2", 200),
        ("GET", f"{API}/queue/data", 200),
        ("POST", f"{API}/cancel", 200),
        ("GET", "/file=/etc/passwd", 404),
        ("GET", f"{API}/file=/etc/passwd", 404),
        ("GET", f"{API}/file/etc/passwd", 404),
        ("GET", f"{API}/proxy=http://127.0.0.1:22/", 404),
        ("GET", f"{API}/info", 404),
        ("GET", "/assets/../../../etc/passwd", 404),
        ("GET", "/static/..\\..\\secret", 404),
        ("GET", "/static//etc/passwd", 404),
        ("POST", f"{API}/run/ask", 404),
        ("POST", f"{API}/call/ask", 404),
        ("POST", f"{API}/vibe-edit", 404),
        ("PUT", "/", 404),
        ("DELETE", "/", 404),
        ("POST", "/", 404),
    ],
)
def test_only_what_the_page_needs_is_there(ask, method, path, status):
    found, heard, headers = ask(method, path)
    assert found == status and bool(heard) == (status == 200)
    if status == 200:
        policy = headers[b"content-security-policy"].decode()
        assert "default-src 'self'" in policy and "http" not in policy


def test_calls_may_name_uploads_alone(ask, uploads):
    def call(value):
        return ask("POST", f"{API}/queue/join", json.dumps({"data": [value]}).encode())

    mine = {"path": str(uploads / "abc" / "clip.mp4"), "meta": {"_type": "gradio.FileData"}}
    status, heard, _ = call(mine)
    assert status == 200 and json.loads(heard[0]) == {"data": [mine]}  # and it arrives whole
    for path in (
        "/etc/passwd",
        str(uploads / ".." / "secret.txt"),
        str(uploads / "link.mp4"),
        str(uploads / "abc"),
        str(uploads / "none.mp4"),
        "http://127.0.0.1:8080/x",
        "file:///etc/passwd",
        "\0",
        ["/etc/passwd"],
        None,
    ):
        assert call([{"deep": [{"path": path}]}])[:2] == (403, []), path
    assert ask("POST", f"{API}/queue/join", b"no json")[:2] == (400, [])
    assert ask("POST", f"{API}/queue/join", b"[" * 100_000)[:2] == (400, [])


def test_sizes_are_limited_before_anything_is_kept(ask, uploads):
    call = json.dumps({"data": ["x" * (1 << 20)]}).encode()
    assert ask("POST", f"{API}/queue/join", call)[:2] == (413, [])
    assert ask("POST", f"{API}/upload", b"x" * 1000)[0] == 200
    assert ask("POST", f"{API}/upload", b"x" * 70_000)[:2] == (413, [])
    assert ask("POST", f"{API}/upload", b"x", length=False)[:2] == (411, [])
    (uploads / "waiting.mp4").write_bytes(b"x" * 4000)
    assert ask("POST", f"{API}/upload", b"x" * 1000)[:2] == (507, [])


def test_other_names_of_this_machine_are_refused(ask):
    for host in ("127.0.0.1:7860", "localhost", "[::1]:7860", "LOCALHOST:1"):
        assert ask("GET", "/", host=host)[0] == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example:7860", "10.0.0.5", ""):
        assert ask("GET", "/", host=host)[:2] == (421, []), host
        assert ask("GET", "/", host=host, any_host=True)[0] == 200
    assert [is_loopback(h) for h in ("127.8.9.1", "::1", "0.0.0.0", "::", "example.org")] == [
        *(True, True, False, False, False)
    ]
    assert not is_below("/etc/passwd\0", Path("/"))


def test_uploads_are_what_they_say(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4")
    image = write_image(tmp_path / "a.png", 3, 20, 28)
    check_upload(clip, Limits())
    check_upload(image, Limits())
    write_video(tmp_path / "late.mkv", moving(frames=3), [0, 1, 700])
    for path, limits, message in (
        (clip, {"bytes": 100}, "bytes, more than 100"),
        (clip, {"seconds": 1}, "lasts 2 seconds, more than 1"),
        (clip, {"frames": 23}, "has 24 frames, more than 23"),
        (clip, {"pixels": 48 * 64 - 1}, "has 64 x 48 pixels, more than 3,071"),
        (image, {"pixels": 559}, "has 28 x 20 pixels"),
        (tmp_path / "late.mkv", {}, "lasts 70"),
    ):
        with pytest.raises(UploadError, match=message):
            check_upload(path, Limits(**limits))
    with pytest.raises(ValueError, match=r"frames = 0 must be at least 1"):
        Limits(frames=0)


def test_uploads_that_name_other_files_are_not_read(tmp_path):
    """FFmpeg and Pillow know formats by their content, whatever the name says."""
    write_clip(tmp_path / "private.mp4")
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nprivate.mp4\n#EXT-X-ENDLIST\n"
    lists = {"list.mp4": "ffconcat version 1.0\nfile private.mp4\n", "hls.mp4": hls}
    lists |= {"text.mkv": "hello", "page.png": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}
    lists |= {"vector.png": "<svg xmlns='http://www.w3.org/2000/svg'/>", "empty.mp4": ""}
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    with open_video(tmp_path / "list.mp4") as (container, _):
        assert container.format.name == "concat"  # what would have been shown
    for name in lists:
        with pytest.raises(UploadError, match=name):
            check_upload(tmp_path / name, Limits())
    for name in ("hls.m3u8", "clip.txt", "noending"):
        (tmp_path / name).write_bytes((tmp_path / "private.mp4").read_bytes())
        with pytest.raises(UploadError, match="are read"):
            check_upload(tmp_path / name, Limits())


def test_what_was_left_is_swept_away(tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("old/a.mp4", "new.mp4"):
        (tmp_path / name).write_bytes(b"x")
    long_ago = time.time() - 900
    os.utime(tmp_path / "old" / "a.mp4", (long_ago, long_ago))
    sweep(tmp_path, 600)
    assert [path.name for path in tmp_path.rglob("*")] == ["new.mp4"]


def test_frames_are_shown_with_what_was_read():
    frames = np.zeros((2, 8, 16, 3), np.uint8)
    frames[:, :, 8:] = 255
    read = np.zeros((2, 2, 4), bool)
    read[0] = read[1, 0, 3] = True
    picture = Picture(frames, read, np.array([0.0, 1.5]), True, 9, 2)
    page = frames_html("<img src=x onerror=1>.mp4", "9 patches & more", picture)
    assert html.escape("<img src=x onerror=1>.mp4") in page and "<img src=x" not in page
    assert "0.00 s" in page and "1.50 s" in page and "9 patches &amp; more; lit" in page
    found = re.findall(r'<img (class="cv-veil")?[^>]*src="data:image/\w+;base64,([^"]+)"', page)
    assert [bool(veil) for veil, _ in found] == [False, False, True]  # frame, frame and its veil
    pictures = [Image.open(io.BytesIO(base64.b64decode(d))) for _, d in found]
    assert pictures[1].size == (16, 8)
    alpha = np.asarray(pictures[2])[..., 3]
    assert (alpha[read[1]] == 0).all() and (alpha[~read[1]] > 100).all()
    assert "http" not in page and "lit" not in frames_html(
        "a.png", "all", Picture(frames[:1], read[:1], None, True, 8, 1)
    )


def test_the_verb_refuses_what_cannot_be(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["web", str(tmp_path)]) == 2
    assert 'pip install "codecvit[web]"' in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    for options, message in (
        (["--port", "0"], "--port 0 must lie"),
        (["--queue", "0"], "--queue 0"),
        (["--max-upload", "0"], "bytes = 0"),
        (["--temperature", "-1"], "temperature"),
        ([], "holds no config.json"),
    ):
        assert main(["web", str(tmp_path), *options]) == 2
        assert message in capsys.readouterr().err
    assert all(word in help_of("web", capsys) for word in ("--host", "--max-seconds", "--size"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1, port {port}"):
            web.serve(None, "", None, Limits(), port=port).__enter__()


@pytest.mark.parametrize(
    ("host", "warns"),
    [(None, False), ("localhost", False), ("::1", False), ("0.0.0.0", True), ("192.0.2.7", True)],
)
def test_a_page_for_others_is_warned_of(tmp_path, capsys, monkeypatch, host, warns):
    served = []

    @contextlib.contextmanager
    def serve(reader, title, decoding, limits, host, port, queue):
        served.append((title, host, port, queue, limits.bytes, limits.seconds, decoding))
        yield "http://there/"

    ended = threading.Event()
    ended.set()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(web, "serve", serve)
    monkeypatch.setattr(web, "load_model", lambda args: None)
    monkeypatch.setattr(web, "_until_asked_to_end", lambda: ended)
    monkeypatch.setattr("codecvit.llava.chat.sight.Reader", lambda *args: None)
    words = ["web", str(tmp_path / "stage2" / "model"), "--port", "81", "--queue", "3"]
    words += ["--max-upload", "2.5", "--max-seconds", "9", "--top-p", "0.5"]
    assert main([*words, *([] if host is None else ["--host", host])]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("http://there/ ")
    assert ("no password" in err and "2.5 MB" in err and str(host) in err) == warns == bool(err)
    decoding = Decoding(512, 0.0, 0.5)
    assert served == [("stage2", host or "127.0.0.1", 81, 3, 2_500_000, 9.0, decoding)]


def help_of(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    return capsys.readouterr().out
