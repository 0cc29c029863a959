"""Embeddings of files: parity, resuming, formats, what is refused; search on them."""

import json

import av
import jax
import numpy as np
import pytest
from PIL import Image

import codecvit
from codecvit.__main__ import main as codecvit_main
from codecvit.cluster.feature_files import read_rows
from codecvit.cluster.features import embeddings
from codecvit.convert.export import export
from codecvit.data.records import RecordSet
from codecvit.models import Encoder, ViT, ViTConfig
from codecvit.retrieval import embed as embed_module
from codecvit.retrieval.index import encoder_hash, read_index
from codecvit.retrieval.search import picture_of

CONFIG = ViTConfig(width=64, depth=1, num_heads=1, mlp_dim=64, patch=14)
VIEW = ["--size", "56", "--budget", "32", "--num-frames", "4"]
PACK = {"size": 56, "budget": 32, "num_frames": 4}


def make_encoder(folder, seed):
    params = jax.jit(ViT(CONFIG).init)(
        jax.random.key(seed), np.zeros((1, 4, 588), np.uint8), np.zeros((1, 4, 3), np.int32)
    )["params"]
    # Fresh blocks hardly look at their input.
    params = jax.tree.map(lambda x: np.asarray(x) * 3, params)
    export(params, CONFIG, folder, image_size=56)
    return folder


def write_clip(path, seed, bit_rate=400_000):
    """Eight frames of smooth colours that drift."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(small).resize((160, 160), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 80, 64, "yuv420p"
        stream.bit_rate = bit_rate
        for i in range(8):
            picture = np.ascontiguousarray(large[4 * i : 4 * i + 64, 2 * i : 2 * i + 80])
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """media/ with 5 clips, a picture, a copy of clip 3 at another rate and a broken file."""
    folder = tmp_path_factory.mktemp("retrieval")
    media = folder / "media"
    media.mkdir()
    for number in range(5):
        write_clip(media / f"clip{number}.mp4", number)
    write_clip(folder / "copy3.mp4", 3, bit_rate=60_000)
    picture = np.random.default_rng(9).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(picture).save(media / "picture.png")
    (media / "broken.mp4").write_bytes(b"no video at all")
    make_encoder(folder / "encoder", 0)
    make_encoder(folder / "other", 1)
    return folder


def run_embed(place, out, *options, encoder="encoder", inputs=("media",)):
    paths = [str(place / name) for name in inputs]
    arguments = [*paths, "--checkpoint", str(place / encoder), "--out", str(out), *VIEW]
    return codecvit_main(["embed", *arguments, "--workers", "0", *options])


@pytest.fixture(scope="module")
def index_file(place):
    out = place / "features.npz"
    assert run_embed(place, out) == 0
    return out


def test_rows_are_those_of_the_encoder(place, index_file):
    with np.load(index_file, allow_pickle=False) as arrays:
        rows = dict(zip(arrays["keys"].tolist(), arrays["features"], strict=True))
        assert arrays["features"].dtype == np.float32
    encoder = codecvit.load(place / "encoder")
    assert sorted(rows) == [*(f"clip{i}.mp4" for i in range(5)), "picture.png"]
    for number in range(5):
        sequence = codecvit.pack_video(place / f"media/clip{number}.mp4", **PACK)
        want = encoder(sequence).pooled
        np.testing.assert_allclose(rows[f"clip{number}.mp4"], want, atol=1e-5)
    picture = codecvit.pack_image(place / "media/picture.png", size=56)
    np.testing.assert_allclose(rows["picture.png"], encoder(picture).pooled, atol=1e-5)


def test_an_unreadable_file_is_counted_and_named(place, index_file, tmp_path, capsys):
    out = tmp_path / "f.npz"
    assert run_embed(place, out) == 0
    assert "6 ok, 0 skipped, 1 failed" in capsys.readouterr().out
    (failure,) = map(json.loads, (tmp_path / "f.npz.failures.jsonl").read_text().splitlines())
    assert failure["key"] == "broken.mp4" and "broken.mp4" in failure["reason"]
    assert run_embed(place, tmp_path / "g.npz", "--max-failures", "0") == 1


def test_a_run_that_was_killed_goes_on(place, index_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embed_module, "PART_SIZE", 3)
    seen, whole = [], Encoder.pooled

    def once(self, sequences, devices=None):
        if seen:
            raise KeyboardInterrupt
        seen.append(len(sequences))
        return whole(self, sequences, devices)

    out = tmp_path / "f.npz"
    monkeypatch.setattr(Encoder, "pooled", once)
    with pytest.raises(KeyboardInterrupt):
        run_embed(place, out)
    assert not out.exists() and seen == [2]  # of broken, clip0, clip1
    assert run_embed(place, out, encoder="other") == 2
    assert "beginning of another run" in capsys.readouterr().err

    def count(self, sequences, devices=None):
        seen.append(len(sequences))
        return whole(self, sequences, devices)

    monkeypatch.setattr(Encoder, "pooled", count)
    assert run_embed(place, out) == 0
    assert seen == [2, 3, 1]
    assert "4 ok, 2 skipped, 1 failed" in capsys.readouterr().out
    found, want = read_index(out), read_index(index_file)
    assert found.keys == want.keys
    np.testing.assert_allclose(found.features, want.features, atol=1e-5)
    assert not (tmp_path / "f.npz.parts").exists()


def test_what_is_there_stays_and_what_differs_is_refused(place, index_file, capsys):
    before = index_file.read_bytes()
    assert run_embed(place, index_file) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert run_embed(place, index_file, "--budget", "48") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert index_file.read_bytes() == before
    assert run_embed(place, place / "f.csv") == 2


def test_several_devices_give_the_same_rows(place):
    sequences = [codecvit.pack_video(place / f"media/clip{i}.mp4", **PACK) for i in range(5)]
    sequences.append(codecvit.pack_image(place / "media/picture.png", size=112))
    encoder = codecvit.load(place / "encoder")
    one = encoder.pooled(sequences)
    two = encoder.pooled(sequences, jax.devices()[:2])
    np.testing.assert_allclose(one, [encoder(s).pooled for s in sequences], atol=1e-5)
    np.testing.assert_array_equal(one, two)


def test_parquet_and_npz_say_the_same_and_clustering_reads_both(place, index_file, tmp_path):
    pytest.importorskip("pyarrow")
    out = tmp_path / "f.parquet"
    assert run_embed(place, out) == 0
    found, want = read_index(out), read_index(index_file)
    np.testing.assert_array_equal(found.features, want.features)
    assert (found.keys, found.paths, found.about) == (want.keys, want.paths, want.about)
    for file in (out, index_file):
        keys, rows = read_rows(file)
        assert list(keys) == want.keys
        np.testing.assert_array_equal(rows, want.features)


def test_records_go_the_way_of_clustering(place, tmp_path):
    media = str(place / "media")
    assert codecvit_main(["pack", media, "--out", str(tmp_path), *VIEW, "--workers", "0"]) == 0
    out = tmp_path / "f.npz"
    arguments = [str(tmp_path / "codec"), "--checkpoint", str(place / "encoder")]
    assert codecvit_main(["embed", *arguments, "--out", str(out)]) == 0
    records = RecordSet(tmp_path / "codec")
    index = read_index(out)
    want = embeddings(records, codecvit.load(place / "encoder").embed, 8, silent=True)
    assert index.keys == records.keys
    np.testing.assert_allclose(index.features, want.rows_ND, atol=1e-5)
    assert picture_of(index, 0).width > 96  # drawn from the record
    query = ["search", "--index", str(out), "--query", str(place / "copy3.mp4")]
    assert codecvit_main(query) == 1  # the index does not know how files are packed
    assert codecvit_main(["search", "--index", str(out), "--key", index.keys[0]]) == 0


def test_two_inputs_with_one_key_are_refused(place, tmp_path, capsys):
    media = str(place / "media")
    for name in ("a", "b"):
        out = str(tmp_path / name)
        assert codecvit_main(["pack", media, "--out", out, *VIEW, "--workers", "0"]) == 0
    sets = [str(tmp_path / name / "codec") for name in ("a", "b")]
    options = ["--checkpoint", str(place / "encoder"), "--out", str(tmp_path / "f.npz")]
    assert codecvit_main(["embed", *sets, *options]) == 2
    assert "the key 'clip0.mp4'" in capsys.readouterr().err


def test_search_finds_a_copy_first(place, index_file, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    query = ["search", "--index", str(index_file), "--query", str(place / "copy3.mp4")]
    assert codecvit_main([*query, "--top", "3", "--out", str(sheet), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["nearest"]
    assert [len(found), found[0]["key"]] == [3, "clip3.mp4"]
    assert found[0]["cosine"] > found[1]["cosine"] >= found[2]["cosine"]
    index = read_index(index_file)
    ours = codecvit.load(place / "encoder")(codecvit.pack_video(place / "copy3.mp4", **PACK)).pooled
    row = index.features[index.keys.index("clip3.mp4")]
    cosine = ours @ row / np.linalg.norm(ours) / np.linalg.norm(row)
    assert found[0]["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert Image.open(sheet).height == 4 * (96 + 16 + 12)


def test_a_member_is_not_its_own_neighbour(index_file, capsys):
    assert codecvit_main(["search", "--index", str(index_file), "--key", "clip1.mp4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and not any("clip1.mp4" in line for line in lines)


def test_another_encoder_is_refused(place, index_file, capsys):
    query = ["search", "--index", str(index_file), "--query", str(place / "copy3.mp4")]
    assert codecvit_main([*query, "--checkpoint", str(place / "other")]) == 1
    message = capsys.readouterr().err
    assert encoder_hash(codecvit.load(place / "encoder"))[:12] in message and "other" in message


def test_a_part_of_a_file_is_drawn_again(place, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(f"path,start,end\n{place / 'media/clip0.mp4'},0.25,0.75\n")
    out = tmp_path / "f.npz"
    arguments = ["--checkpoint", str(place / "encoder"), "--out", str(out), *VIEW]
    assert codecvit_main(["embed", str(table), *arguments, "--workers", "0"]) == 0
    index = read_index(out)
    assert index.paths == [f"{place / 'media/clip0.mp4'}#t=0.25,0.75"]
    part = codecvit.pack_video(place / "media/clip0.mp4", start=0.25, end=0.75, **PACK)
    want = codecvit.load(place / "encoder")(part).pooled
    np.testing.assert_allclose(index.features[0], want, atol=1e-5)
    assert picture_of(index, 0).width > 96
