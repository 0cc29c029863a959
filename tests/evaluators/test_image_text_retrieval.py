"""Retrieval against plain numpy, with planted matches, several captions an image, and ties."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from codecvit.evaluators.embedding import text_embeddings
from codecvit.evaluators.image_text_retrieval import RECALLS, image_text_retrieval


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


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_text_embeddings_do_not_depend_on_the_batch(batch_size):
    def embed(texts):
        assert len(texts) == batch_size
        return np.array([[len(text), 1] for text in texts])

    found = text_embeddings(["a", "bb", "", "cccc"], embed, batch_size)
    np.testing.assert_array_equal(found, [[1, 1], [2, 1], [0, 1], [4, 1]])
    with pytest.raises(ValueError, match="no texts"):
        text_embeddings([], embed)
