from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from codecvit.codec import MediaError, pack_image
from codecvit.codec.image import read_image


def test_patches_are_the_pixels_at_their_positions(tmp_path, texture):
    picture = texture(0, 56, 56)
    Image.fromarray(picture).save(tmp_path / "a.png")
    sequence = pack_image(tmp_path / "a.png", size=56)
    assert len(sequence) == 16
    for patch, (t, h, w) in zip(sequence.patches, sequence.positions, strict=True):
        assert t == 0
        np.testing.assert_array_equal(patch, picture[h * 14 : h * 14 + 14, w * 14 : w * 14 + 14])


def test_view_is_the_centre_of_the_picture_scaled_by_bicubic(tmp_path, texture):
    picture = Image.fromarray(texture(1, 150, 300))
    picture.save(tmp_path / "a.png")
    expected = picture.resize((112, 56), Image.BICUBIC).crop((28, 0, 84, 56))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 56), np.asarray(expected))


def test_exif_orientation_is_honoured(tmp_path, texture):
    upright = texture(2, 60, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(np.rot90(upright)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 60), upright)


def test_exif_of_wrong_types_is_damage(tmp_path):
    """Pillow's own code fails on it, with errors of no common class."""
    entries = [
        struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0),  # orientation, so that the EXIF is rewritten
        struct.pack("<HHI4s", 0x011A, 2, 4, b"abc\0"),  # a resolution that is a text
    ]
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    Image.new("RGB", (20, 20)).save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(MediaError, match=r"a\.jpg: cannot be read as an image"):
        read_image(tmp_path / "a.jpg", 14)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    value = 200 if mode != "1" else 255
    grey = np.full((40, 50), value, np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) << 8)
    else:
        image = Image.fromarray(grey).convert(mode)
    assert image.mode == mode
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    view = read_image(path, 28)
    assert view.shape == (28, 28, 3)
    np.testing.assert_allclose(view.astype(int), value, atol=2)


def test_unusable_images_are_named(tmp_path, texture, monkeypatch):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").touch()
    Image.fromarray(texture(3, 200, 200)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    for name in ("text.jpg", "empty.png", "cut.jpg", "missing.png"):
        with pytest.raises(MediaError, match=name) as error:
            pack_image(tmp_path / name)
        assert error.value.path == str(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(MediaError, match="more than 30000"),
    ):
        pack_image(tmp_path / "whole.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(MediaError, match="whole.jpg"):
        pack_image(tmp_path / "whole.jpg")


def test_size_is_checked():
    with pytest.raises(ValueError, match="size = 60 must be a multiple of patch = 14"):
        pack_image("missing.png", size=60)
