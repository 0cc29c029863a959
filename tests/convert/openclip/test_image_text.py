"""`codecvit.load_clip` and `codecvit classify` say what the model computes."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import codecvit
from codecvit.convert.classify import main
from codecvit.convert.image_text import ImageTextModel, prepare
from codecvit.convert.openclip.settings import ClipOrigin
from codecvit.convert.openclip.write import export_clip
from codecvit.data.tokenizers import open_tokenizer
from codecvit.models import ViTConfig
from codecvit.models.clip import embed_image, embed_text

SIZE = 32


@pytest.fixture(scope="module")
def parts(make_parts):
    return make_parts()


@pytest.fixture(scope="module")
def params(make_weights, parts):
    return make_weights(parts)


@pytest.fixture(scope="module")
def folder(parts, params, vocabulary, tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "folder"
    tokenizer = open_tokenizer(vocabulary)
    return export_clip(params, parts, out, origin=ClipOrigin(image_size=SIZE), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def model(folder):
    return codecvit.load_clip(folder)


@pytest.fixture
def pictures(tmp_path, make_images):
    """Files of three pictures, wide, tall and square."""
    files = []
    for number, (rows, columns) in enumerate([(5, 8), (9, 4), (6, 6)]):
        levels = make_images(1, rows, columns, 8, seed=number)[0]
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(levels).save(files[-1])
    return files


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_files_arrays_and_sequences_embed_alike(
    model, parts, params, pictures, make_batch, tmp_path
):
    levels = [np.asarray(Image.open(file)) for file in pictures]
    rows = model.embed_images(pictures)
    np.testing.assert_array_equal(model.embed_images(levels), rows)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    squares = np.stack(
        [
            np.asarray(Image.open(f).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
            for f in pictures
        ]
    )
    wanted = embed_image(parts.clip(), params, make_batch(squares, 8))[0]
    np.testing.assert_allclose(rows, wanted, atol=1e-5)
    packed = codecvit.pack_image(pictures[2], size=48, patch=8)  # another size than the folder's
    alone = model.embed_images([packed])[0]
    np.testing.assert_allclose(model.embed_images([*pictures, packed])[3], alone, atol=1e-5)


def test_many_images_and_texts_come_back_in_order(model, make_images):
    images = make_images(19, 4, 4, 8)
    rows = model.embed_images(images)
    np.testing.assert_allclose(rows[17], model.embed_images([images[17]])[0], atol=1e-5)
    texts = [f"a {'dog ' * number}cat" for number in range(9)] * 2
    rows = model.embed_texts(texts)
    np.testing.assert_allclose(rows[9:], rows[:9], atol=1e-5)
    assert np.abs(rows[0] - rows[1]).max() > 1e-3
    assert model.embed_images([]).shape == model.embed_texts([]).shape == (0, 24)


def test_texts_are_those_of_the_tokenizer(model, parts, params, vocabulary):
    texts = ["a photo of a dog.", "RED cats running"]
    ids = np.stack([open_tokenizer(vocabulary).encode(text, 12) for text in texts])
    wanted = embed_text(parts.clip(), params, ids)[0]
    np.testing.assert_allclose(model.embed_texts(texts), wanted, atol=1e-5)


def test_classify_averages_the_templates(model, params, pictures):
    labels, templates = ["dog", "red car"], ["a photo of a {}.", "the {}"]
    shares = model.classify(pictures, labels, templates)
    assert shares.shape == (3, 2)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    texts = [model.embed_texts([t.replace("{}", label) for t in templates]) for label in labels]
    cosines = cosine(model.embed_images(pictures)[:, None], np.stack([t.mean(0) for t in texts]))
    logits = np.exp(params["logit_scale"]["value"]) * cosines
    wanted = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(shares, wanted, atol=1e-5)


def test_labels_of_the_sigmoid_loss_stand_for_themselves(
    make_parts, make_weights, vocabulary, pictures
):
    parts = make_parts(bias=True)
    params = make_weights(parts)
    origin = ClipOrigin(image_size=SIZE)
    model = ImageTextModel(parts, params, open_tokenizer(vocabulary), origin)
    two = model.classify(pictures, ["dog", "cat"])
    np.testing.assert_allclose(model.classify(pictures, ["dog"])[:, 0], two[:, 0], atol=1e-6)
    cosines = model.embed_images(pictures) @ model.embed_texts(["a photo of a dog."]).T
    logits = np.exp(params["logit_scale"]["value"]) * cosines + params["logit_bias"]["value"]
    np.testing.assert_allclose(two[:, :1], 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_a_model_on_our_encoder_embeds_videos(
    make_parts, make_weights, make_sequence, vocabulary, tmp_path
):
    vision = ViTConfig(width=64, depth=1, num_heads=2, mlp_dim=96, patch=14)
    parts = dataclasses.replace(make_parts(), vision=vision)
    out = export_clip(
        make_weights(parts),
        parts,
        tmp_path / "out",
        origin=ClipOrigin(image_size=28),
        tokenizer=open_tokenizer(vocabulary),
    )
    model = codecvit.load_clip(out)
    short, long = make_sequence(1, length=30), make_sequence(2, length=90)
    rows = model.embed_images([short, long])
    np.testing.assert_allclose(rows[0], model.embed_images([short])[0], atol=1e-5)
    with pytest.raises(ValueError, match="patches of 16 x 16 pixels, the model takes patch = 14"):
        model.embed_images([make_sequence(1, length=5, patch=16)])


def test_prepare_squeezes_or_cuts():
    levels = np.zeros((40, 80, 3), np.uint8)
    levels[:, 20:60] = 200  # the centre
    picture = Image.fromarray(levels)
    squeezed = prepare(picture, ClipOrigin(image_size=SIZE))
    cut = prepare(picture, ClipOrigin(image_size=SIZE, resize_mode="shortest"))
    assert squeezed.shape == cut.shape == (SIZE, SIZE, 3)
    assert (cut[:, 1:-1] == 200).all() and (squeezed[:, :7] == 0).all()


def test_the_verb(folder, pictures, capsys, tmp_path):
    arguments = [*pictures, "--labels", "dog, red car,tree", "--model", str(folder)]
    assert main([*arguments, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.count("%") == 2 for line in lines)
    assert main([*arguments, "--json", "--templates", "the {}"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[1])
    assert row["image"] == pictures[1] and set(row["labels"]) == {"dog", "red car", "tree"}
    shares = list(row["labels"].values())
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-5)
    wanted = codecvit.load_clip(folder).classify(
        [pictures[1]], ["tree"] * 1 + ["dog", "red car"], ["the {}"]
    )
    assert row["labels"]["tree"] == pytest.approx(wanted[0, 0], abs=1e-5)
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    arguments[arguments.index("dog, red car,tree")] = str(tmp_path / "classes.txt")
    assert main([*arguments, "--templates", "imagenet-7"]) == 0
    assert "dog" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--labels", "dog,dog"], "names 'dog' twice"),
        (["--labels", " , "], "names no class"),
        (["--templates", "{} and {}"], "must hold {} once"),
        (["--templates", "nothing"], "known by name"),
        (["--top", "0"], "--top 0 must be at least 1"),
        (["--model", "/nowhere"], "/nowhere is no folder"),
        (["--tokenizer", "/nowhere.txt"], "/nowhere.txt does not exist"),
    ],
)
def test_wrong_wishes_are_named(folder, pictures, capsys, change, message):
    arguments = [pictures[0], "--labels", "dog,cat", "--model", str(folder), *change]
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_damaged_picture_is_named(folder, tmp_path, capsys):
    (tmp_path / "no.png").write_bytes(b"no picture")
    assert main([str(tmp_path / "no.png"), "--labels", "a,b", "--model", str(folder)]) == 1
    assert "no.png" in capsys.readouterr().err


def test_what_has_no_texts_is_refused(make_parts, make_weights, tmp_path):
    parts = make_parts()
    encoder = {"encoder": make_weights(parts)["encoder"]}
    alone = dataclasses.replace(parts, text=None)
    out = export_clip(encoder, alone, tmp_path / "alone", origin=ClipOrigin(image_size=SIZE))
    with pytest.raises(ValueError, match="has no text tower"):
        codecvit.load_clip(out)


def test_it_needs_no_torch(folder):
    code = f"""
import sys
import codecvit, numpy
model = codecvit.load_clip({str(folder)!r})
model.classify([numpy.zeros((9, 9, 3), "uint8")], ["dog", "cat"])
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
