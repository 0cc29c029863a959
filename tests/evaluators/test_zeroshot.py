"""Zero-shot classification against plain numpy, with planted matches."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from codecvit.evaluators.prompts import Classes
from codecvit.evaluators.zeroshot import class_embeddings, class_numbers, zero_shot


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


@pytest.mark.parametrize(
    "called",
    [
        ["goldfish", "tench"],
        ["n02", "n01"],
        ["1", "0"],
        ["goldfish", "Tinca tinca"],
        ["n02", "0"],
    ],
)
def test_classes_are_called_by_name_alias_id_or_number(called):
    np.testing.assert_array_equal(class_numbers(called, NAMED), [1, 0])


@pytest.mark.parametrize("name", ["cat", "3", "n04", "-1", "Tench", ""])
def test_a_name_of_no_class_is_refused(name):
    with pytest.raises(ValueError, match=f"class '{name}' is none of the 3 classes"):
        class_numbers(["ray", name], NAMED)


def test_a_name_of_several_classes_is_refused_whatever_else_there_is():
    """ImageNet has a bird and a machine that are called crane."""
    names = (("crane",), ("crane", "hoist"), ("missile",), ("projectile", "missile"))
    twins = Classes(names, ("n10", "n20", "n30", "n40"))
    for name, which in (("crane", r"0 \('crane'\), 1 \('crane'\)"), ("missile", "2 .*, 3 ")):
        with pytest.raises(ValueError, match=f"any of the classes {which}.*by WordNet ids"):
            class_numbers(["projectile", name], twins)
    np.testing.assert_array_equal(class_numbers(["n20", "0", "hoist"], twins), [1, 0, 1])


def test_a_number_that_is_another_class_s_name_is_refused():
    with pytest.raises(ValueError, match=r"class '0' may be any of the classes 0 \('one'\), 1"):
        class_numbers(["0"], Classes((("one",), ("0",))))
    np.testing.assert_array_equal(class_numbers(["1"], Classes((("0",), ("1",)))), [1])
