"""Image encoders of transformers on the frames of patch sequences."""

import json

import numpy as np
import pytest

from codecvit.codec.image import image_sequence

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from codecvit.convert.torch_encoder import TorchEncoder, frames_of, temporal_code  # noqa: E402

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 96, "image_size": 32, "patch_size": 8}
# Three means and deviations that differ, so that no mix-up of channels goes unseen.
PROCESSOR = {"image_mean": [0.1, 0.5, 0.7], "image_std": [0.2, 0.3, 0.5], "do_normalize": True}


@pytest.fixture(scope="module", params=["vit", "siglip", "clip"])
def folder(request, tmp_path_factory):
    """A model at random with its image processor; the last one has a text tower too."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param)
    processor = {"size": {"height": 32, "width": 32}, **PROCESSOR}
    if request.param == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**SIZES), add_pooling_layer=False)
    elif request.param == "siglip":
        model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES))
    else:
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
        text |= {"intermediate_size": 32, "vocab_size": 50}
        config = transformers.CLIPConfig(text_config=text, vision_config=SIZES, projection_dim=8)
        model = transformers.CLIPModel(config)
        processor |= {"do_center_crop": True, "crop_size": 32, "size": {"shortest_edge": 40}}
    model.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def clip(frames, side=32, patch=16, seed=0):
    """Random pictures and the flat patches and positions that stand for them."""
    pictures = np.random.default_rng(seed).integers(0, 256, (frames, side, side, 3), np.uint8)
    parts = [image_sequence(picture, patch) for picture in pictures]
    positions = np.concatenate([part.positions for part in parts])
    positions[:, 0] = np.repeat(np.arange(frames) * 9, len(parts[0]))
    return pictures, np.concatenate([part.flat() for part in parts]), positions


@pytest.mark.parametrize(("side", "patch"), [(32, 16), (28, 14), (32, 8)])
def test_patches_become_the_frames_again(side, patch):
    pictures, patches, positions = clip(3, side, patch)
    np.testing.assert_array_equal(frames_of(patches, positions), pictures)


def test_a_selection_of_patches_is_refused():
    _, patches, positions = clip(3)
    with pytest.raises(ValueError, match=r"11 patches are not 3 whole frames of 2 x 2.*framesN"):
        frames_of(np.delete(patches, 5, axis=0), np.delete(positions, 5, axis=0))


def test_tokens_are_those_of_the_model_with_the_code_of_their_frame(folder):
    pictures, patches, positions = clip(3)
    encoder = TorchEncoder(str(folder), 4)
    length = np.array([12, 0, 8], np.int32)  # three frames, none, two
    tokens, valid = encoder(np.stack([patches] * 3), np.stack([positions] * 3), length)

    model = transformers.AutoModel.from_pretrained(folder)
    vision = getattr(model, "vision_model", model).eval()
    mean, std = (np.array(PROCESSOR[key], np.float32) for key in ("image_mean", "image_std"))
    pixels = ((pictures / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = vision(pixel_values=torch.from_numpy(pixels)).last_hidden_state.numpy()
    N = expected.shape[1]
    assert tokens.shape == (3, 4 * N, 64) and encoder.width == 64
    assert valid.tolist() == [3 * N, 1, 2 * N]
    angles = np.arange(3)[:, None] / 10000 ** (np.arange(32) / 32)
    coded = expected + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, None]
    np.testing.assert_allclose(tokens[0, : 3 * N], coded.reshape(-1, 64), atol=1e-5)
    np.testing.assert_allclose(tokens[2, : 2 * N], coded[:2].reshape(-1, 64), atol=1e-5)
    assert not tokens[1].any() and not tokens[0, 3 * N :].any()


def test_pictures_of_another_size_are_resized(folder):
    """Of one colour, since what a resize does between colours is its own affair."""
    encoder = TorchEncoder(str(folder), 1)
    flat = {}
    for side in (32, 48):
        patches = np.full((1, (side // 16) ** 2, 768), 90, np.uint8)
        positions = np.array([[(0, h, w) for h in range(side // 16) for w in range(side // 16)]])
        flat[side] = encoder(patches, positions, np.array([patches.shape[1]]))[0]
    np.testing.assert_allclose(flat[48], flat[32], atol=1e-4)


def test_the_temporal_code():
    code = temporal_code(5, 6)
    assert code.shape == (5, 6) and code.dtype == np.float32
    np.testing.assert_array_equal(code[0], [0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(code[1, [0, 3]], [np.sin(1), np.cos(1)], rtol=1e-6)
    assert temporal_code(2, 5).shape == (2, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_mean": None}, r"image_mean = None"),
        ({"image_mean": 0.5}, r"image_mean = 0\.5 .*three numbers each"),
        ({"size": {"longest_edge": 99}, "do_center_crop": False}, "no fixed size of pictures"),
    ],
)
def test_a_processor_that_does_not_tell_is_refused(folder, tmp_path, change, message):
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    settings = json.loads((copy / "preprocessor_config.json").read_text()) | change
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        TorchEncoder(str(copy), 1)


def test_what_is_no_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"hf:.*cannot be opened"):
        TorchEncoder(str(tmp_path), 1)


def test_pixels_that_are_not_normalised_stay_in_0_to_1(folder, tmp_path):
    copies = {}
    for name, change in (
        ("off", {"do_normalize": False}),
        ("ones", {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}),
    ):
        copies[name] = tmp_path / name
        copies[name].mkdir()
        for file in folder.iterdir():
            (copies[name] / file.name).write_bytes(file.read_bytes())
        settings = json.loads((copies[name] / "preprocessor_config.json").read_text()) | change
        (copies[name] / "preprocessor_config.json").write_text(json.dumps(settings))
    _, patches, positions = clip(1)
    rows = (patches[None], positions[None], np.array([4]))
    one, other = (TorchEncoder(str(copies[name]), 1)(*rows)[0] for name in ("off", "ones"))
    np.testing.assert_array_equal(one, other)
