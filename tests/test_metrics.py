"""Where numbers go: everything into the files, what matters onto the terminal."""

import resource
import struct
import types

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from codecvit import metrics
from codecvit.metrics import EventFile, MetricWriter, read_metrics


def events_in(folder):
    """What the only event file of a folder holds: records of length, checksum, bytes, checksum."""
    (path,) = folder.iterdir()
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        (size,) = struct.unpack_from("Q", data, place)
        found.append(Event.FromString(data[place + 12 : place + 12 + size]))
        place += 12 + size + 4
    return found


def test_tensorboard_gets_the_values_and_forgets_what_is_trained_again(tmp_path):
    writer = MetricWriter(tmp_path, 10, start_step=3)
    writer.write(4, {"train/loss": 2.5, "perf/mfu": 0.5})
    writer.close()
    version, begin, row = events_in(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2"
    assert (begin.step, begin.session_log.status) == (4, SessionLog.START)
    assert row.step == 4
    values = {value.tag: value.simple_value for value in row.summary.value}
    assert values == {"train/loss": 2.5, "perf/mfu": 0.5}


def test_an_event_that_cannot_be_written_is_an_error(tmp_path):
    """Not a wait without end for a thread that the error has ended."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = EventFile(tmp_path, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            for step in range(1000):  # more than the file's buffer holds
                file.write(step, {"train/loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_time_that_is_left_counts_evaluations_too(tmp_path, capsys, monkeypatch):
    """The first line has its own pace alone; later ones that of all the time since then."""
    now = [0.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0])
    monkeypatch.setattr(metrics, "time", clock)
    writer = MetricWriter(tmp_path, 100)
    writer.write(10, {"perf/step_seconds": 5.0})
    now[0] = 100.0  # 10 steps of a second, and an evaluation
    writer.write(20, {"perf/step_seconds": 1.0})
    writer.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("eta 0:07:30") and second.endswith("eta 0:13:20")


@pytest.mark.parametrize("unreadable", [0.0, 2.0])
def test_counts_of_an_evaluation_are_shown_when_some_could_not_be_read(
    tmp_path, capsys, unreadable
):
    counts = {"images": 32.0, "captions": 64.0, "unreadable": unreadable}
    values = {f"retrieval/coco/{name}": count for name, count in counts.items()}
    whole = {"zero_shot/digits/top1": 0.5, "zero_shot/digits/count": 9.0}
    values |= {"retrieval/coco/image_to_text_r1": 0.25, "zero_shot/digits/unreadable": 0.0, **whole}
    writer = MetricWriter(tmp_path, 10)
    writer.write(3, values)
    writer.close()
    line = capsys.readouterr().out.strip()
    assert "retrieval/coco/image_to_text_r1 0.25" in line and "zero_shot/digits/top1 0.5" in line
    for name in counts:
        assert (f"retrieval/coco/{name} " in line) == (unreadable > 0)
    assert "zero_shot/digits/count" not in line and "zero_shot/digits/unreadable" not in line
    (row,) = read_metrics(tmp_path)
    assert {key: row[key] for key in values} == values
