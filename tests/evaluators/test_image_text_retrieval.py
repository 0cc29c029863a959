"""Retrieval against plain numpy, with planted matches, several captions an image, and ties."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from PIL import Image

from codecvit.data.pack import main as pack
from codecvit.data.records import RecordSet
from codecvit.evaluators.captions import CaptionedImages
from codecvit.evaluators.embedding import image_embeddings, text_embeddings
from codecvit.evaluators.image_text_retrieval import (
    RECALLS,
    image_text_retrieval,
    retrieve_files,
    retrieve_records,
)


def data(images=90, captions=240, features=16, noise=1.5, seed=0):
    """Every image but the last two has captions, one to many, in no order."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(images, features))
    image_of = np.concatenate(
        [np.arange(images - 2), rng.integers(0, images - 2, captions - images + 2)]
    )
    rng.shuffle(image_of)
    text = image[image_of] + noise * rng.normal(size=(captions, features))
    image *= rng.uniform(0.1, 10, (images, 1))
    return image.astype(np.float32), text.astype(np.float32), image_of


def plain(image, text, image_of):
    image, text = (x / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (image, text))
    cosine = image @ text.T
    found = {}
    for k in RECALLS:
        nearest = np.argsort(-cosine, axis=1)[:, :k]
        hits = [i in image_of[nearest[i]] for i in range(len(image)) if i in image_of]
        found[f"image_to_text_r{k}"] = np.mean(hits)
        nearest = np.argsort(-cosine, axis=0)[:k]
        found[f"text_to_image_r{k}"] = np.mean((nearest == image_of).any(0))
    return found


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("chunk", [7, 8192])
def test_it_equals_plain_numpy(devices, chunk):
    arguments = data()
    expected = plain(*arguments)
    assert 0.1 < expected["text_to_image_r1"] < expected["image_to_text_r10"] < 1
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    found = image_text_retrieval(*arguments, chunk=chunk, mesh=mesh)
    assert found == expected | {"images": 88, "captions": 240, "unreadable": 0}


def test_planted_matches_and_chance():
    image, text, image_of = data(noise=0.0)
    found = image_text_retrieval(image, text, image_of)
    assert all(found[f"{way}_r1"] == 1 for way in ("image_to_text", "text_to_image"))
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(400, 8)), rng.normal(size=(2000, 8))
    found = image_text_retrieval(image, text, np.repeat(np.arange(400), 5))
    for k in RECALLS:
        assert abs(found[f"text_to_image_r{k}"] - k / 400) < 0.007
        assert abs(found[f"image_to_text_r{k}"] - 5 * k / 2000) < 0.02


def test_embeddings_that_are_all_the_same_find_nothing():
    image, text, image_of = data()
    for images, texts in ((image, text[:1]), (image[:1], text), (image[:1], image[:1])):
        found = image_text_retrieval(
            np.broadcast_to(images, image.shape), np.broadcast_to(texts, text.shape), image_of
        )
        # A constant caption is nearest to one image, whose captions find it; as is an image.
        assert found["text_to_image_r1"] <= np.bincount(image_of).max() / 240
        assert found["image_to_text_r1"] <= 1 / 88
    assert not any(
        found[f"{way}_r{k}"] for way in ("image_to_text", "text_to_image") for k in (1, 5)
    )


def test_padding_changes_nothing():
    image, text, image_of = data()
    expected = image_text_retrieval(image, text, image_of)
    padded = image_text_retrieval(
        np.concatenate([image, text[:3]]),  # perfect matches of captions
        np.concatenate([text, image[:5], np.full((1, 16), np.nan, np.float32)]),  # and of images
        np.concatenate([image_of, np.full(6, -1)]),
        readable_N=np.arange(93) < 90,
    )
    assert padded == expected


def test_unreadable_images_and_their_captions_find_nothing():
    image, text, image_of = data(noise=0.1)
    assert image_text_retrieval(image, text, image_of)["text_to_image_r1"] == 1
    readable = np.ones(90, bool)
    readable[[3, 89]] = False  # the second has no caption
    image[3] = np.nan
    found = image_text_retrieval(image, text, image_of, readable_N=readable)
    assert found["unreadable"] == 1 and found["images"] == 88
    for k in RECALLS:
        assert found[f"image_to_text_r{k}"] == pytest.approx(87 / 88)
        assert found[f"text_to_image_r{k}"] == pytest.approx(1 - np.mean(image_of == 3))


def test_captions_of_unreadable_images_stay_in_the_way():
    image = np.array([[1, 0], [0, 1]], np.float32)
    text = np.array([[1, 0.5], [1, 0.1]], np.float32)
    for readable in ([True, True], [True, False]):
        found = image_text_retrieval(image, text, np.array([0, 1]), readable_N=np.array(readable))
        assert found["image_to_text_r1"] == 0 and found["image_to_text_r5"] == np.mean(readable)


def test_wrong_arguments_are_named():
    image, text, image_of = data()
    for change, message in (
        ({"image_of_M": image_of[:3]}, r"image_of_M is int64 \[3\].*240 captions"),
        ({"image_of_M": image_of + 3}, "but there are 90 images"),
        ({"image_of_M": np.full(240, -1)}, "none of the 240 captions"),
        ({"text_MD": text * np.nan}, "not finite"),
    ):
        arguments = {"image_ND": image, "text_MD": text, "image_of_M": image_of} | change
        with pytest.raises(ValueError, match=message):
            image_text_retrieval(**arguments)


COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), "grey": (90, 90, 90)}


def embed_images(batch):
    """The mean colour; a row without an image would be 0 / 0."""
    patches = batch["patches"]
    assert patches.shape == (3, 4, 14 * 14 * 3) and batch["positions"].shape == (3, 4, 3)
    pixels = patches.reshape(*patches.shape[:2], -1, 3).astype(np.float32).sum((1, 2))
    with np.errstate(invalid="ignore"):
        return pixels / batch["length"][:, None]


def embed_texts(texts):
    assert len(texts) == 4
    return np.array([COLOURS.get(text.split("_")[0], (1, 1, 1)) for text in texts], np.float64)


def test_files_from_end_to_end(tmp_path):
    paths = []
    for name, colour in COLOURS.items():
        paths.append(tmp_path / f"{name}.png")
        Image.new("RGB", (64, 40), colour).save(paths[-1])
    paths[2].write_bytes(b"damaged")
    captions = (("red_1", "red_2", "grey_0"), ("green_1",), ("blue_1", "blue_2"), ("grey_1",))
    data = CaptionedImages(tuple(COLOURS), tuple(paths), captions, (), ())
    found = retrieve_files(
        data, embed_images, embed_texts, size=28, patch=14, image_batch=3, text_batch=4
    )
    assert (found["images"], found["captions"], found["unreadable"]) == (4, 7, 1)
    # Blue is unreadable. Grey's own caption ties with a wrong one that says the same.
    assert found["image_to_text_r1"] == 2 / 4
    assert found["text_to_image_r1"] == 4 / 7
    assert found["text_to_image_r5"] == 5 / 7 and found["image_to_text_r5"] == 3 / 4


def test_a_record_set_and_its_captions(tmp_path):
    for name in ("blue", "green", "red"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (28, 28), COLOURS[name]).save(tmp_path / "images" / f"{name}.png")
    options = ["--size", "28", "--patch", "14", "--workers", "1"]
    assert pack([str(tmp_path / "images"), "--out", str(tmp_path / "set"), *options]) == 0
    records = RecordSet(tmp_path / "set" / "image")
    assert [key.split(".")[0] for key in records.keys] == ["blue", "green", "red"]

    def embed(batch):  # the set's batches are longer than its records
        return batch["patches"].reshape(3, -1, 3).astype(np.float32).sum(1)

    arguments = {"image_batch": 3, "text_batch": 4}
    captions = [["blue_1", "blue_2"], [], ["green_1"]]
    found = retrieve_records(records, captions, embed, embed_texts, **arguments)
    assert (found["images"], found["captions"]) == (2, 3)
    assert found["image_to_text_r1"] == 1 / 2
    assert found["text_to_image_r1"] == 2 / 3  # the green image has no caption, and is in the way
    with pytest.raises(ValueError, match="given for 2 records.* has 3"):
        retrieve_records(records, captions[:2], embed, embed_texts)
    with pytest.raises(ValueError, match="no texts"):
        retrieve_records(records, [[], [], []], embed, embed_texts, **arguments)


def test_features_of_files_do_not_depend_on_the_batch(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    paths.insert(1, tmp_path / "missing.png")

    def embed(batch):
        sums = batch["patches"].astype(np.float32).sum(2)
        return np.concatenate([sums, batch["positions"].sum(2)], axis=1)

    one, four = (image_embeddings(paths, embed, size=28, patch=14, batch_size=n) for n in (1, 4))
    np.testing.assert_array_equal(one.rows_ND, four.rows_ND)
    np.testing.assert_array_equal(four.readable_N, [1, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(four.rows_ND[0, 4:], [0, 1, 1, 2])  # h + w of the patches
    assert not four.rows_ND[1].any()
    with pytest.raises(ValueError, match="size = 30 must be a multiple of patch = 14"):
        image_embeddings(paths, embed, size=30, patch=14)
    with pytest.raises(ValueError, match="no images"):
        image_embeddings([], embed, size=28, patch=14)
    with pytest.raises(ValueError, match="no texts"):
        text_embeddings([], embed_texts)
