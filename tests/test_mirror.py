"""A folder that is written into bit by bit, here or behind a URL."""

import time

import pytest

from codecvit import files
from codecvit.mirror import Mirror


def test_a_local_folder_is_itself(tmp_path):
    mirror = Mirror(tmp_path / "a" / "b")
    assert mirror.folder == tmp_path / "a" / "b"
    mirror.fetch("x.txt")
    (mirror.folder / "x.txt").write_text("1")
    mirror.close()
    assert (tmp_path / "a" / "b" / "x.txt").read_text() == "1"


def test_what_grows_is_copied_and_goes_on_with_the_next_process():
    url = "memory://mirror/run"
    mirror = Mirror(url, every=0.02)
    mirror.fetch("metrics.jsonl")
    (mirror.folder / "deep").mkdir()
    (mirror.folder / "deep" / "events").write_text("e")
    with (mirror.folder / "metrics.jsonl").open("a") as file:
        file.write("one\n")
        file.flush()
        deadline = time.monotonic() + 20
        while not files.exists(f"{url}/metrics.jsonl") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert files.read_text(f"{url}/metrics.jsonl") == "one\n"
        file.write("two\n")
    mirror.close()
    mirror.close()  # twice does no harm
    assert not mirror.folder.exists()
    again = Mirror(url)
    again.fetch("metrics.jsonl")
    assert (again.folder / "metrics.jsonl").read_text() == "one\ntwo\n"
    (again.folder / "other").write_text("3")
    again.close()
    assert list(files.list_files(url)) == ["deep/events", "metrics.jsonl", "other"]


def test_a_copy_that_fails_is_told_once_and_tried_again(monkeypatch, caplog):
    import codecvit.mirror

    real, failures = codecvit.mirror.write_atomic, []

    def write(path, data):
        if len(failures) < 3:
            failures.append(path)
            raise OSError("no network")
        real(path, data)

    monkeypatch.setattr(codecvit.mirror, "write_atomic", write)
    mirror = Mirror("memory://mirror/failing", every=0.02)
    (mirror.folder / "a").write_text("1")
    deadline = time.monotonic() + 20
    while not files.exists("memory://mirror/failing/a") and time.monotonic() < deadline:
        time.sleep(0.01)
    mirror.close()
    assert files.read_text("memory://mirror/failing/a") == "1"
    assert [record.message for record in caplog.records] == [
        "cannot be copied to memory://mirror/failing: a: no network"
    ]


@pytest.mark.parametrize("place", ["{}", "memory://files{}"])
def test_folders_move_whole(tmp_path, place):
    folder = place.format(tmp_path)
    for name in ("old", "old/in"):
        files.make_folder(files.join(folder, name))
        files.write_atomic(files.join(folder, name, "x"), name.encode())
    files.make_folder(files.join(folder, "torn"))
    files.move_folder(files.join(folder, "old"), files.join(folder, "torn", "new"))
    assert files.list_files(files.join(folder, "torn/new")) == {"in/x": 6, "x": 3}
    assert not files.list_files(files.join(folder, "old"))
