"""What a process writes about itself."""

import json
import logging
import time

import pytest

from codecvit.files import read_bytes
from codecvit.trainers import heartbeat


def beat(workdir, process=0):
    return json.loads(read_bytes(heartbeat.beat_url(str(workdir), process)))


def wait(workdir, condition):
    deadline = time.monotonic() + 20
    while not condition(found := beat(workdir)):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("place", ["{}", "memory://heartbeats{}"])
def test_a_run_is_told_from_start_to_end(tmp_path, place):
    workdir = place.format(tmp_path)
    with heartbeat.beating(workdir, "run1", 0, 2, every=0.02):
        first = beat(workdir)
        assert (first["beat"], first["phase"], first["step"]) == (1, "starting", 0)
        assert (first["since_step"], first["rate"], first["total_steps"]) == (None, None, None)
        heartbeat.enter("starting", total_steps=5, step=2)
        heartbeat.enter("data")
        found = wait(workdir, lambda b: b["phase"] == "data")
        assert (found["step"], found["total_steps"], found["since_step"]) == (2, 5, None)
        assert found["beat"] > 1
        heartbeat.enter("step")
        heartbeat.stepped(3)
        found = wait(workdir, lambda b: b["phase"] == "step" and b["step"] == 3)
        assert found["since_step"] < 20
        assert abs(found["last_step"] - time.time()) < 20
        heartbeat.stepped(5)
    last = beat(workdir)
    assert (last["phase"], last["step"], last["run"], last["processes"]) == ("done", 5, "run1", 2)
    assert last["beat"] > found["beat"]


def test_a_run_that_ends_early_is_stopped_not_done(tmp_path):
    with heartbeat.beating(str(tmp_path), "r", 0, 1):
        heartbeat.enter("starting", total_steps=5, step=0)
        heartbeat.stepped(2)
    assert beat(tmp_path)["phase"] == "stopped"


@pytest.mark.parametrize("error", [ValueError("no\nway"), KeyboardInterrupt("no")])
def test_an_exception_is_the_last_word(tmp_path, error):
    with pytest.raises(type(error)), heartbeat.beating(str(tmp_path), "r", 3, 4):
        raise error
    found = beat(tmp_path, 3)
    assert found["phase"] == "failed"
    assert found["problem"] == f"{type(error).__name__}: no"
    assert [file.name for file in (tmp_path / "heartbeats").iterdir()] == ["process-00003.json"]


def test_the_last_warning_is_told_and_a_new_start_forgets_it(tmp_path):
    with heartbeat.beating(str(tmp_path), "r", 0, 1):
        logging.getLogger("codecvit.data").warning("record %d is torn", 7)
        logging.getLogger("codecvit.data").info("nothing")
        logging.getLogger("other").warning("not ours")
    assert beat(tmp_path)["problem"] == "WARNING: record 7 is torn"
    with heartbeat.beating(str(tmp_path), "r2", 0, 1):
        assert (beat(tmp_path)["problem"], beat(tmp_path)["beat"]) == ("", 1)


def test_the_rate_is_that_of_the_steps(tmp_path):
    with heartbeat.beating(str(tmp_path), "r", 0, 1, every=0.02):
        began = time.monotonic()
        for step in range(1, 41):
            time.sleep(0.01)
            heartbeat.stepped(step)
        real = 40 / (time.monotonic() - began)
        found = wait(tmp_path, lambda b: b["rate"] is not None and b["step"] == 40)
    assert real / 3 < found["rate"] < real * 1.5


def test_a_folder_that_cannot_be_written_is_noticed_at_the_start_and_survived_later(
    tmp_path, caplog
):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), heartbeat.beating(str(tmp_path / "file"), "r", 0, 1):
        raise AssertionError("not reached")
    folder = tmp_path / "heartbeats"
    with heartbeat.beating(str(tmp_path), "r", 0, 1, every=0.02):
        folder.rename(tmp_path / "away")
        deadline = time.monotonic() + 20
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        (tmp_path / "away").rename(folder)
        found = wait(tmp_path, lambda b: "heartbeats cannot be written" in b["problem"])
    assert found["beat"] > 2
    assert len(caplog.records) == 1
