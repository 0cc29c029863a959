"""Zero-shot classification against plain numpy, with planted matches."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from PIL import Image

from codecvit.data.labels import Labels, load_labels
from codecvit.data.pack import main as pack
from codecvit.data.records import RecordSet
from codecvit.evaluators.prompts import Classes
from codecvit.evaluators.zeroshot import (
    class_embeddings,
    class_numbers,
    zero_shot,
    zero_shot_records,
)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def data(images=203, classes=31, features=24, noise=2.5, seed=0):
    rng = np.random.default_rng(seed)
    class_rows = unit(rng.normal(size=(classes, features)))
    labels = rng.integers(0, classes, images)
    image = class_rows[labels] * np.sqrt(features) + noise * rng.normal(size=(images, features))
    return image.astype(np.float32), labels, class_rows.astype(np.float32)


def plain(image, labels, classes):
    order = np.argsort(-(unit(image.astype(np.float64)) @ classes.T), axis=1)
    hits = order == labels[:, None]
    return hits[:, 0].mean(), hits[:, :5].any(1).mean()


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("chunk", [4, 31, 8192])
def test_it_equals_plain_numpy(devices, chunk):
    image, labels, classes = data()
    top1, top5 = plain(image, labels, classes)
    assert 0.3 < top1 < top5 < 1
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    found = zero_shot(image, labels, classes, chunk=chunk, mesh=mesh)
    assert found == {"top1": top1, "top5": top5, "count": 203, "unreadable": 0}


def test_planted_matches_and_chance():
    image, labels, classes = data(noise=0.0)
    assert zero_shot(image, labels, classes)["top1"] == 1
    wrong = (labels + 1) % 31
    assert zero_shot(image, wrong, classes)["top1"] == 0
    noise = np.random.default_rng(1).normal(size=(4000, 24)).astype(np.float32)
    labels = np.random.default_rng(2).integers(0, 31, 4000)
    found = zero_shot(noise, labels, classes)
    assert abs(found["top1"] - 1 / 31) < 0.012 and abs(found["top5"] - 5 / 31) < 0.025


def test_padding_does_not_count_and_unreadable_images_are_wrong():
    image, labels, classes = data()
    expected = zero_shot(image, labels, classes)
    more = np.concatenate([image, np.full((5, 24), np.nan, np.float32)])
    padded = zero_shot(np.nan_to_num(more), np.concatenate([labels, np.full(5, -1)]), classes)
    assert padded == expected
    readable = np.arange(208) < 203
    counted = zero_shot(
        more, np.concatenate([labels, np.zeros(5, int)]), classes, readable_N=readable
    )
    assert counted["count"] == 208 and counted["unreadable"] == 5
    for name in ("top1", "top5"):
        assert counted[name] == pytest.approx(expected[name] * 203 / 208)


def test_embeddings_that_are_all_the_same_score_nothing():
    _, labels, classes = data()
    same = np.broadcast_to(classes[:1], classes.shape)
    found = zero_shot(np.broadcast_to(classes[:1], (203, 24)), labels, same)
    assert found["top1"] == found["top5"] == 0
    only_images = zero_shot(np.broadcast_to(classes[:1], (203, 24)), labels, classes)
    assert only_images["top1"] == np.mean(labels == 0)


def table(seed=0):
    """An embedding of texts that depends on the text alone, of any length."""
    seen = []

    def embed(texts):
        seen.append(len(texts))
        rows = [np.random.default_rng([seed, *text.encode()]).normal(size=6) for text in texts]
        return np.stack(rows) * np.arange(1, len(texts) + 1)[:, None]

    return embed, seen


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_class_embeddings_are_unit_means_of_unit_texts(batch_size):
    prompts = [["a", "b", "c"], ["d"], ["a", "a", "e", "f", "g", "h"]]
    embed, seen = table()
    expected = [unit(unit(embed([text])).mean(0)) for text in ("d",)]
    mean = np.mean([unit(embed([text]))[0] for text in prompts[2]], axis=0)
    seen.clear()
    found = class_embeddings(prompts, embed, batch_size)
    assert set(seen) == {batch_size}
    np.testing.assert_allclose(found[1], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[2], unit(mean), rtol=1e-6)
    assert found.dtype == np.float32


def test_wrong_arguments_are_named():
    image, labels, classes = data()
    for change, message in (
        ({"labels_N": labels[:3]}, r"labels_N is int64 \[3\]"),
        ({"labels_N": labels + 1}, "but there are 31 classes"),
        ({"labels_N": np.full(203, -1)}, "none of the 203 images has a label"),
        ({"image_ND": image * np.nan}, "not finite"),
    ):
        arguments = {"image_ND": image, "labels_N": labels, "classes_YD": classes} | change
        with pytest.raises(ValueError, match=message):
            zero_shot(**arguments)
    with pytest.raises(ValueError, match="class 1 has no text"):
        class_embeddings([["a"], []], table()[0])
    with pytest.raises(ValueError, match=r"embed gave \(1, 6\) for 2 texts"):
        class_embeddings([["a", "b"]], lambda texts: np.zeros((1, 6)), 2)


NAMED = Classes((("tench", "Tinca tinca"), ("goldfish",), ("ray",)), ("n01", "n02", "n03"))


def labels_of(classes, values, num_classes=None):
    values = np.array(values, np.int32)[:, None]
    return Labels("label", values, num_classes or len(classes), classes, {})


def test_labels_become_numbers_of_the_classes():
    for called in (("goldfish", "tench"), ("n02", "n01"), ("1", "0")):
        found = class_numbers(labels_of(called, [0, 1, -1]), NAMED)
        np.testing.assert_array_equal(found, [1, 0, -1])
    np.testing.assert_array_equal(class_numbers(labels_of(None, [2, -1], 3), NAMED), [2, -1])
    for called, message in (
        (("cat",), "'cat', which is none of the 3 classes"),
        (("3",), "'3', which is none"),
        (("Tinca tinca",), "'Tinca tinca', which is none"),
    ):
        with pytest.raises(ValueError, match=message):
            class_numbers(labels_of(called, [0]), NAMED)
    with pytest.raises(ValueError, match="have 2 columns"):
        both = dataclasses.replace(labels_of(None, [0], 3), values=np.zeros((1, 2), np.int32))
        class_numbers(both, NAMED)
    twins = Classes((("crane",), ("crane",)))
    with pytest.raises(ValueError, match="have the same name"):
        class_numbers(labels_of(("crane",), [0]), twins)
    assert class_numbers(labels_of(("0", "1"), [1]), twins) == [1]


def test_a_record_set_of_coloured_images(tmp_path):
    """The embedding of an image is its mean colour, that of a class the colour of that name."""
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    for name, colour in colours.items():
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for i in range(2):
            shown = colours["red"] if (name, i) == ("blue", 1) else colour
            Image.new("RGB", (40, 30), shown).save(folder / f"{name}{i}.png")
    arguments = ["--labels", "folders", "--size", "28", "--patch", "14", "--workers", "1"]
    assert pack([str(tmp_path / "images"), "--out", str(tmp_path / "set"), *arguments]) == 0
    records = RecordSet(tmp_path / "set" / "image")
    assert load_labels(records, "label").classes == ("blue", "green", "red")

    def embed_images(batch):
        pixels = batch["patches"].reshape(*batch["patches"].shape[:2], -1, 3).astype(np.float32)
        return pixels.sum((1, 2))

    def embed_texts(texts):
        return np.stack([colours.get(text.rstrip("."), (1, 1, 1)) for text in texts])

    classes = Classes((("red",), ("green",), ("blue",)))
    rows = class_embeddings([["red."], ["green."], ["blue."]], embed_texts, 8)
    found = zero_shot_records(records, "label", classes, rows, embed_images, batch_size=4)
    assert found == {"top1": pytest.approx(5 / 6), "top5": 1, "count": 6, "unreadable": 0}

    key = next(key for key in records.keys if "red0" in key).encode()
    part = next(records.path.glob("*.array_record"))
    data = bytearray(part.read_bytes())
    data[data.index(key) + len(key)] ^= 0xFF
    part.write_bytes(data)
    found = zero_shot_records(records, "label", classes, rows, embed_images, batch_size=4)
    assert found["top1"] == pytest.approx(4 / 6) and found["top5"] == pytest.approx(5 / 6)
    assert (found["count"], found["unreadable"]) == (6, 1)
