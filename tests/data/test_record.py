"""One record: round trips, storage, versions, damage."""

from __future__ import annotations

import dataclasses
import json
import struct
import subprocess
import sys

import numpy as np
import pytest

from codecvit.data import record as record_module
from codecvit.data.record import (
    RecordError,
    Storage,
    decode_record,
    encode_record,
    stored_descriptor,
    with_texts,
)


def _header_of(data: bytes) -> dict:
    (size,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + size])


def _with_version(data: bytes, version: int) -> bytes:
    header = _header_of(data)
    record = json.loads(header["__metadata__"]["record"])
    header["__metadata__"]["record"] = json.dumps({**record, "version": version})
    (size,) = struct.unpack_from("<Q", data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


@pytest.mark.parametrize("kind", ["raw", "png"])
@pytest.mark.parametrize("patch", [4, 14, 16])
@pytest.mark.parametrize("length", [1, 31, 33, 70])
def test_lossless_storage_gives_back_everything(make_record, kind, patch, length):
    record = make_record(3, length, patch)
    back = decode_record(encode_record(record, Storage(kind)))
    for field in dataclasses.fields(record):
        if field.name in ("sequence", "descriptor", "pts", "gaps"):
            continue
        assert getattr(back, field.name) == getattr(record, field.name)
    np.testing.assert_array_equal(back.sequence.patches, record.sequence.patches)
    np.testing.assert_array_equal(back.sequence.positions, record.sequence.positions)
    np.testing.assert_array_equal(back.descriptor, record.descriptor)
    np.testing.assert_array_equal(back.pts, record.pts)
    np.testing.assert_array_equal(back.gaps, record.gaps)


def test_texts_are_kept_and_can_be_added(make_record):
    """Without any the bytes are as before there were texts; added ones give the packed bytes."""
    texts = {"text_0": "a seven\nover flowers", "text_1": "\u00e9\u4e2d \U0001f600"}
    plain, storage = make_record(3), Storage("png")
    data = encode_record(dataclasses.replace(plain, texts=texts), storage)
    assert decode_record(data).texts == texts
    without = encode_record(plain, storage)
    assert "texts" not in json.loads(_header_of(without)["__metadata__"]["record"])
    assert decode_record(without).texts == {}
    assert with_texts(without, texts) == data
    assert with_texts(data, {"text_0": "b"}) != data
    with pytest.raises(RecordError, match="no CodecViT record"):
        with_texts(data[:20], texts)


@pytest.mark.parametrize("kind", ["jpeg", "png", "raw"])
def test_the_descriptor_is_read_without_the_patches(make_record, monkeypatch, kind):
    """A first clustering of millions of records would spend its time on decoding them."""
    record = make_record(3, 40)
    data = encode_record(record, Storage(kind))
    monkeypatch.setattr(record_module, "decode_mosaic", None)
    monkeypatch.setattr(record_module, "PatchSequence", None)
    np.testing.assert_array_equal(stored_descriptor(data), record.descriptor)
    for damaged, match in (
        (data[:-1], "'clip-0003' is damaged"),
        (data.replace(b'"descriptor"', b'"discriptor"'), "lacks the field 'descriptor'"),
        (data[:20], "no CodecViT record"),
    ):
        with pytest.raises(RecordError, match=match):
            stored_descriptor(damaged)


def test_a_group_is_kept(make_record):
    record = dataclasses.replace(make_record(3), group=(2, 64), view=(28, 56))
    back = decode_record(encode_record(record, Storage("raw")))
    assert (back.group, back.view) == ((2, 64), (28, 56))


@pytest.mark.parametrize("patch", [14, 16])
def test_jpeg_keeps_patches_close_and_positions_exact(make_record, patch):
    record = make_record(5, 70, patch)
    back = decode_record(encode_record(record, Storage("jpeg", 95)))
    np.testing.assert_array_equal(back.sequence.positions, record.sequence.positions)
    error = back.sequence.patches.astype(int) - record.sequence.patches
    assert 0 < np.abs(error).max() <= 6


@pytest.mark.parametrize("patch", [14, 16])
def test_jpeg_does_not_bleed_between_patches(make_record, patch):
    """A patch decodes to the same pixels whatever its neighbours in the mosaic are."""
    record = make_record(1, 70, patch)
    others = record.sequence.patches.copy()
    kept = np.zeros(70, bool)
    kept[[0, 33, 35, 69]] = True
    others[~kept] = np.random.default_rng(9).integers(0, 256, others[~kept].shape)
    sequence = dataclasses.replace(record.sequence, patches=others)
    changed = dataclasses.replace(record, sequence=sequence)
    storage = Storage("jpeg", 80)
    a = decode_record(encode_record(record, storage)).sequence.patches
    b = decode_record(encode_record(changed, storage)).sequence.patches
    np.testing.assert_array_equal(a[kept], b[kept])
    assert (a[~kept] != b[~kept]).any()


def test_quality_trades_bytes_for_error(make_record):
    record = make_record(2, 64, 14)
    sizes, errors = [], []
    for quality in (50, 80, 95):
        data = encode_record(record, Storage("jpeg", quality))
        sizes.append(len(data))
        errors.append(
            np.abs(
                decode_record(data).sequence.patches.astype(int) - record.sequence.patches
            ).mean()
        )
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert errors == sorted(errors, reverse=True) and errors[0] > errors[-1]


def test_equal_records_give_equal_bytes_in_another_process(make_record):
    """safetensors orders several metadata entries at random per process: we must write one."""
    code = (
        "import hashlib, numpy as np\n"
        "from codecvit.data.record import *\n"
        "from codecvit.sequence import PatchSequence\n"
        "positions = np.array([[0, 0, 0], [0, 0, 1]], np.int32)\n"
        "s = PatchSequence(np.zeros((2, 4, 4, 3), np.uint8), positions)\n"
        "z = np.zeros(3, np.float32)\n"
        "r = Record('k', 'codec', (8, 8), 4, s, z, z, z[1:], None, {'b': '1', 'a': '2'}, 'x')\n"
        "print(hashlib.sha256(encode_record(r, Storage('raw'))).hexdigest())\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(4)
    ]
    assert len({run.stdout for run in runs}) == 1
    header = _header_of(encode_record(make_record(1), Storage("raw")))
    assert list(header["__metadata__"]) == ["record"]


def test_unknown_version_is_named(make_record):
    data = encode_record(make_record(1), Storage("raw"))
    assert decode_record(_with_version(data, 2)).key == "clip-0001"
    with pytest.raises(RecordError, match=r"'clip-0001' has version 7, .* reads version 2"):
        decode_record(_with_version(data, 7))


def test_damage_is_an_error_that_names_the_record(make_record):
    data = encode_record(make_record(1, 40, 14), Storage("jpeg"))
    with pytest.raises(RecordError, match="no CodecViT record"):
        decode_record(b"")
    with pytest.raises(RecordError, match="no CodecViT record"):
        decode_record(b"\x10" + data[1:])
    with pytest.raises(RecordError, match="'clip-0001' is damaged"):
        decode_record(data[: len(data) // 2])
    broken = bytearray(data)
    at = data.index(b"\xff\xd8")
    broken[at : at + 20] = bytes(20)
    with pytest.raises(RecordError, match="'clip-0001' is damaged"):
        decode_record(bytes(broken))


@pytest.mark.parametrize("kind", ["jpeg", "png", "raw"])
def test_any_damage_is_a_record_error_or_harmless(make_record, kind):
    """No other exception may escape: it would stop a training run for one bad record."""
    data = encode_record(make_record(3, 40, 14), Storage(kind))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.integers(min(len(data), 1000))] = rng.integers(256)
        try:
            found = stored_descriptor(bytes(damaged))
            assert found.dtype == np.float32 and found.ndim == 1
            decode_record(bytes(damaged))
        except RecordError:
            refused += 1
    assert refused > 100


def test_record_refuses_what_does_not_fit(make_record):
    record = make_record(1, 5)
    with pytest.raises(ValueError, match="5 patches, over its budget of 4"):
        dataclasses.replace(record, budget=4)
    with pytest.raises(ValueError, match="descriptor must be float32"):
        dataclasses.replace(record, descriptor=np.zeros(3))
    with pytest.raises(ValueError, match="pts holds 65 frames"):
        dataclasses.replace(record, pts=np.zeros(65, np.float32))
    with pytest.raises(ValueError, match="gaps holds 2 values for 4 frames"):
        dataclasses.replace(record, pts=np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="storage = 'webp'"):
        Storage("webp")
    with pytest.raises(ValueError, match="quality = 0"):
        Storage("jpeg", 0)
