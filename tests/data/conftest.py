"""Hand-made records for the tests of the data part; the fixtures hand out the functions."""

from __future__ import annotations

import numpy as np
import pytest
from record_writer import RecordWriter

from codecvit.data.record import Record, Storage, encode_record
from codecvit.data.records import RecordSet
from codecvit.jobs import shard_plan
from codecvit.sequence import PatchSequence

PATCH = 4


def _make_sequence(length: int, seed: int = 0, patch: int = PATCH) -> PatchSequence:
    """`length` patches of smooth random colours at the first places of 8 x 8 frames."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 200, (length, 1, 1, 3)) + rng.integers(
        0, 2, (length, patch, patch, 3)
    )
    place = np.arange(length)
    positions = np.stack([place // 64, place // 8 % 8, place % 8], axis=1)
    return PatchSequence(corners.astype(np.uint8), positions.astype(np.int32))


def _make_record(
    number: int, length: int | None = None, patch: int = PATCH, labels: dict | None = None
) -> Record:
    length = 3 + number % 5 if length is None else length
    return Record(
        key=f"clip-{number:04d}",
        mode="codec",
        view=(8 * patch, 8 * patch),
        budget=length + 2,
        sequence=_make_sequence(length, number, patch),
        descriptor=np.linspace(0, number, 6, dtype=np.float32),
        pts=np.arange(3, dtype=np.float32) / 7,
        gaps=np.full(2, 1 / 7, np.float32),
        labels={"parity": "odd" if number % 2 else "even"} if labels is None else labels,
        source=f"folder/clip {number}.mp4",
    )


def _write_set(
    folder, count: int = 12, per_shard: int = 5, storage: str = "raw", skip: tuple = ()
) -> RecordSet:
    """A record set of `count` hand-made records, without those in `skip`."""
    with RecordWriter(folder, shard_plan(count, per_shard)) as writer:
        for number in range(count):
            if number in skip:
                continue
            record = _make_record(number)
            entry = {
                "key": record.key,
                "length": len(record.sequence),
                "labels": record.labels,
            }
            writer.write(number, encode_record(record, Storage(storage)), entry)
        failures = [{"key": f"clip-{n:04d}", "reason": "left out"} for n in skip]
        description = {"mode": "codec", "patch": PATCH, "size": 8 * PATCH, "budget": 16}
        return writer.finish(description, failures)


def _damage(path, text: bytes) -> None:
    """Flips the byte after the first occurrence of `text` in a file, in place."""
    data = bytearray(path.read_bytes())
    place = data.index(text) + len(text)
    data[place] ^= 0xFF
    path.write_bytes(data)


@pytest.fixture
def make_sequence():
    return _make_sequence


@pytest.fixture
def make_record():
    return _make_record


@pytest.fixture
def write_set():
    return _write_set


@pytest.fixture
def damage():
    return _damage
