"""Record sets on disk: reading back, shard plan, damage."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from record_writer import RecordWriter

from codecvit.data.record import RecordError, Storage, encode_record
from codecvit.data.records import RecordSet
from codecvit.jobs import shard_plan


def _bytes_of(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_was_written_is_read_in_order(tmp_path, make_record, write_set):
    write_set(tmp_path, 12, per_shard=5)
    record_set = RecordSet(tmp_path)
    assert len(record_set) == 12
    assert [shard["records"] for shard in record_set.manifest["shards"]] == [4, 4, 4]
    assert record_set.keys == [f"clip-{n:04d}" for n in range(12)]
    for number in (0, 3, 4, 11):
        record, expected = record_set[number], make_record(number)
        assert record.key == expected.key
        np.testing.assert_array_equal(record.sequence.patches, expected.sequence.patches)
    assert [record.key for record in record_set] == record_set.keys
    lengths = [len(record.sequence) for record in record_set]
    tokens = {"min": min(lengths), "max": max(lengths), "sum": sum(lengths)}
    assert record_set.manifest["tokens"] == tokens
    for index in (-1, 12):
        with pytest.raises(IndexError):
            record_set.read(index)


def test_a_class_name_may_hold_what_unicode_calls_the_end_of_a_line(tmp_path, make_record):
    names = ["a\u2028b", "c\x85d", "e\u2029f"]
    with RecordWriter(tmp_path, [range(3)]) as writer:
        for number, name in enumerate(names):
            record = make_record(number, labels={"kind": name})
            entry = {"key": record.key, "length": len(record.sequence), "labels": record.labels}
            writer.write(number, encode_record(record, Storage("raw")), entry)
        writer.finish({"mode": "codec", "patch": 4, "size": 32, "budget": 16}, [])
    assert [entry["labels"]["kind"] for entry in RecordSet(tmp_path).index] == names


def test_equal_input_gives_equal_files(tmp_path, write_set):
    write_set(tmp_path / "a")
    write_set(tmp_path / "b")
    assert _bytes_of(tmp_path / "a") == _bytes_of(tmp_path / "b")
    assert RecordSet(tmp_path / "a").shard_hash == RecordSet(tmp_path / "b").shard_hash
    assert write_set(tmp_path / "c", 11).shard_hash != RecordSet(tmp_path / "a").shard_hash


def test_failures_keep_the_others_in_their_shard(tmp_path, write_set):
    """A shard whose files all failed is there and empty; the others are those of a full run."""
    full = write_set(tmp_path / "full", 12, per_shard=4)
    part = write_set(tmp_path / "part", 12, per_shard=4, skip=(4, 5, 6, 7, 8))
    assert [shard["records"] for shard in part.manifest["shards"]] == [4, 0, 3]
    assert part.manifest["shards"][0] == full.manifest["shards"][0]
    assert part.keys == [key for n, key in enumerate(full.keys) if n not in (4, 5, 6, 7, 8)]
    assert part[4].key == "clip-0009"
    assert part.manifest["failures"] == 5
    lines = (tmp_path / "part" / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [f"clip-{n:04d}" for n in range(4, 9)]


def test_a_set_travels_to_another_process(tmp_path, write_set):
    record_set = write_set(tmp_path)
    assert record_set[0].key == "clip-0000"
    assert pickle.loads(pickle.dumps(record_set))[7].key == "clip-0007"  # noqa: S301


def test_unfinished_set_is_refused(tmp_path, write_set):
    write_set(tmp_path / "codec")
    with pytest.raises(RecordError, match="record sets codec: name one"):
        RecordSet(tmp_path)
    (tmp_path / "codec" / "manifest.json").unlink()
    with pytest.raises(RecordError, match="no finished record set"):
        RecordSet(tmp_path / "codec")


def test_unknown_set_version_is_named(tmp_path, write_set):
    write_set(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "version": 9}))
    with pytest.raises(RecordError, match=r"manifest.json has version 9, this program reads 1"):
        RecordSet(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes instead of"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "0 readable records instead"),
    ],
)
def test_a_bad_shard_is_named_when_the_set_is_opened(tmp_path, write_set, change, message):
    write_set(tmp_path)
    name = "part-00001-of-00003.array_record"
    change(tmp_path / name)
    with pytest.raises(RecordError, match=f"{name} .*{message}"):
        RecordSet(tmp_path)


def test_a_damaged_record_is_named_and_spares_the_others(tmp_path, write_set, damage):
    write_set(tmp_path)
    damage(tmp_path / "part-00001-of-00003.array_record", b"clip-0005")
    record_set = RecordSet(tmp_path)
    with pytest.raises(RecordError, match=r"record 5 \(row 1 of .*part-00001"):
        record_set[5]
    assert [record_set[n].key for n in (4, 6)] == ["clip-0004", "clip-0006"]


def test_an_index_that_does_not_fit_is_named(tmp_path, write_set):
    write_set(tmp_path)
    path = tmp_path / "index.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(RecordError, match="lists 11 records, the shards hold 12"):
        _ = RecordSet(tmp_path).keys


@pytest.mark.parametrize(("count", "per_shard"), [(1, 5), (10, 5), (11, 5), (99, 7), (0, 3)])
def test_shard_plan_covers_every_place_once(count, per_shard):
    plan = shard_plan(count, per_shard)
    assert [place for part in plan for place in part] == list(range(count))
    assert all(1 <= len(part) <= per_shard for part in plan)
    assert len(plan) == -(-count // per_shard)
    assert max(map(len, plan), default=0) - min(map(len, plan), default=0) <= 1
