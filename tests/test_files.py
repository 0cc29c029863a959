"""Paths and URLs alike: reading, whole writes, listing, copies; what a missing package says.

`memory://` stands for a remote file system, and `s3://` on it for an object store.
"""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from codecvit import files


class MemoryStore(MemoryFileSystem):
    """Objects appear when they are put: a rename would be a second transfer."""

    protocol = "s3"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("s3://"))

    def mv(self, *_, **__):
        raise AssertionError("an object was renamed")

    def makedirs(self, *_, **__):
        raise AssertionError("an object store has no folders to make")


@pytest.fixture(params=["local", "memory", "s3"])
def place(request, tmp_path, monkeypatch):
    """An empty folder: a local one or a URL."""
    if request.param == "local":
        return str(tmp_path)
    monkeypatch.setitem(_registry, "s3", MemoryStore)
    return f"{request.param}://{uuid.uuid4().hex}"


def _put(folder: str, *names: str) -> None:
    for name in names:
        path = files.join(folder, name)
        if not files.is_url(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, name.encode())


def test_what_is_written_is_read_and_listed(place):
    assert not files.exists(files.join(place, "a.txt"))
    assert files.list_files(files.join(place, "nowhere")) == {}
    _put(place, "b/c.txt", "a.txt", "b/a/x.bin", "b2.txt")
    assert files.read_text(files.join(place, "b", "c.txt")) == "b/c.txt"
    assert files.exists(files.join(place, "a.txt"))
    assert files.is_folder(files.join(place, "b")) and files.is_folder(place)
    assert not files.is_folder(files.join(place, "a.txt"))
    listed = files.list_files(place)
    assert list(listed.items()) == [
        (n, len(n)) for n in ("a.txt", "b/a/x.bin", "b/c.txt", "b2.txt")
    ]
    assert list(files.list_files(files.join(place, "b"))) == ["a/x.bin", "c.txt"], "not b2.txt"
    assert list(files.list_files(files.join(place, "b") + "/")) == ["a/x.bin", "c.txt"]
    files.write_atomic(files.join(place, "a.txt"), b"new")
    assert files.read_bytes(files.join(place, "a.txt")) == b"new"
    files.remove(files.join(place, "a.txt"))
    files.remove(files.join(place, "a.txt"))
    assert "a.txt" not in files.list_files(place)


def test_a_byte_order_mark_is_no_text(place):
    files.write_atomic(files.join(place, "t.csv"), "\ufeffpath".encode())
    assert files.read_text(files.join(place, "t.csv")) == "path"


def test_a_missing_file_is_an_os_error(place):
    for read in (files.read_bytes, files.read_text):
        with pytest.raises(FileNotFoundError):
            read(files.join(place, "nothing"))


def test_part_of_a_file_is_read(place):
    _put(place, "0123456789")
    with files.open_read(files.join(place, "0123456789")) as file:
        file.seek(4)
        assert file.read(3) == b"456"


def test_a_local_copy_keeps_the_name_and_goes_away(place):
    _put(place, "b/clip.mp4")
    path = files.join(place, "b/clip.mp4")
    with files.local_copy(path) as copy:
        assert copy.name == "clip.mp4" and copy.read_bytes() == b"b/clip.mp4"
    assert copy.exists() != files.is_url(place), "only a copy is removed"
    assert files.read_bytes(path) == b"b/clip.mp4"


def test_a_folder_goes_up_with_its_manifest_last(tmp_path, monkeypatch):
    names = ["z.bin", "manifest.json", "a/b.txt"]
    _put(str(tmp_path), *names)
    put = []
    original = MemoryFileSystem.put_file

    def put_file(self, local, remote, **options):
        put.append(Path(local).relative_to(tmp_path).as_posix())
        original(self, local, remote, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    url = f"memory://{uuid.uuid4().hex}/out"
    files.upload(tmp_path, url)
    assert put == ["a/b.txt", "z.bin", "manifest.json"]
    assert files.list_files(url) == {name: len(name) for name in names}
    files.upload(tmp_path / "z.bin", f"{url}/copy.bin")
    assert files.read_bytes(f"{url}/copy.bin") == b"z.bin"


def test_a_download_is_whole_or_absent(tmp_path, monkeypatch):
    url = f"memory://{uuid.uuid4().hex}/a.bin"
    files.write_atomic(url, b"content")
    files.download(url, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"content"

    def torn(self, place, local, **_):
        Path(local).write_bytes(b"con")
        raise ConnectionError("cable pulled")

    monkeypatch.setattr(MemoryFileSystem, "get_file", torn)
    with pytest.raises(OSError, match="cable pulled"):
        files.download(url, tmp_path / "b.bin")
    assert os.listdir(tmp_path) == ["a.bin"]  # noqa: PTH208


def test_readers_see_the_old_or_the_new_content_while_two_write(tmp_path):
    path = tmp_path / "x"
    contents = [letter * 300_000 for letter in (b"a", b"b")]
    path.write_bytes(contents[0])
    stop = threading.Event()

    def write(content: bytes) -> None:
        while not stop.is_set():
            files.write_atomic(path, content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    try:
        assert {path.read_bytes() for _ in range(300)} <= set(contents)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_errors_of_a_backend_become_os_errors(monkeypatch):
    """Every package behind fsspec has errors of its own: a lost connection must not look like a
    bug."""

    class HttpError(Exception):
        pass

    def fail(*_, **__):
        raise HttpError("403 forbidden")

    monkeypatch.setattr(MemoryFileSystem, "open", fail)
    with pytest.raises(OSError, match="memory://b/x: HttpError: 403 forbidden"):
        files.read_bytes("memory://b/x")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://bucket/a.mp4", "gs://bucket/a.mp4 .*gcsfs"),
        ("s3://bucket/a.mp4", "s3://bucket/a.mp4 .*s3fs"),
        ("nope://bucket/a.mp4", r"nope://bucket/a.mp4: .*nope.*pip install gcsfs"),
    ],
)
def test_what_a_scheme_needs_is_named(url, message, monkeypatch):
    for module in ("gcsfs", "s3fs"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    for use in (files.read_bytes, files.exists, files.list_files):
        with pytest.raises(ValueError, match=message):
            use(url)


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("gs://b/a", "x", "y.mp4"), "gs://b/a/x/y.mp4"),
        (("gs://b/a/", "x"), "gs://b/a/x"),
        (("a/b", "x"), "a/b/x"),
        (("", "x"), "x"),
        (("a", "/x"), "/x"),
        (("a", "s3://b/x"), "s3://b/x"),
        ((Path("a"), "x"), "a/x"),
    ],
)
def test_names_are_joined(parts, joined):
    assert files.join(*parts) == joined


def test_only_a_scheme_makes_a_url():
    assert files.is_url("gs://b/x") and files.is_url("S3://b")
    for path in ("a/b", "/a//b", "C:/x", "a b://c", Path("gs://b/x"), "://x"):
        assert not files.is_url(path)
