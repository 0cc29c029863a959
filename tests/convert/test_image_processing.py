"""The image processor shows the exported model what `pack_image` shows ours."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from codecvit import pack_image, pack_video
from codecvit.convert import inputs
from codecvit.convert.hf import image_processing_onevision_encoder as processing
from codecvit.models import vit

Processor = processing.OneVisionEncoderImageProcessor


def photo(width, height, seed=0):
    """Smooth colours with fine texture, so that a shift or another filter shows."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = rng.integers(-40, 40, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def levels(pixel_values):
    """Normalised [3, height, width] back to 0..255 levels [height, width, 3]."""
    pixels = np.asarray(pixel_values).transpose(1, 2, 0)
    return (pixels * np.array(vit.IMAGE_STD) + np.array(vit.IMAGE_MEAN)) * 255


def square(sequence, side):
    """The first frame of a sequence of whole frames, [side, side, 3]."""
    grid = side // 14
    tiles = sequence.patches[: grid**2].reshape(grid, grid, 14, 14, 3)
    return tiles.swapaxes(1, 2).reshape(side, side, 3).astype(float)


def processed(image, side):
    size = {"height": side, "width": side}
    processor = Processor(size={"shortest_edge": side}, crop_size=size)
    out = processor(image, return_tensors="np")["pixel_values"]
    assert out.shape == (1, 3, side, side)
    assert out.dtype == np.float32
    return levels(out[0])


def require_pixels_of_pack_image(path):
    sequence = pack_image(path, size=112, patch=14)
    assert abs(processed(Image.open(path), 112) - square(sequence, 112)).max() < 1


@pytest.mark.parametrize("size", [(301, 227), (227, 301), (224, 224), (100, 333), (640, 97)])
def test_same_pixels_as_pack_image(tmp_path, size):
    photo(*size).save(tmp_path / "photo.png")
    require_pixels_of_pack_image(tmp_path / "photo.png")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK", "I;16"])
def test_same_pixels_in_every_mode(tmp_path, mode):
    image = photo(150, 130)
    if mode == "I;16":
        grey = np.asarray(image.convert("L"), np.uint16)
        image = Image.fromarray(grey * 257)
    else:
        image = image.convert(mode)
    path = tmp_path / f"photo.{'tif' if mode == 'CMYK' else 'png'}"
    image.save(path)
    assert Image.open(path).mode == mode
    require_pixels_of_pack_image(path)


def test_a_photo_taken_upright_stays_upright(tmp_path):
    """The camera's EXIF tag turns it, as `pack_image` does."""
    image = photo(160, 120)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    require_pixels_of_pack_image(tmp_path / "turned.jpg")
    turned = processed(Image.open(tmp_path / "turned.jpg"), 112)
    plain = processed(Image.fromarray(np.asarray(Image.open(tmp_path / "turned.jpg"))), 112)
    assert abs(turned - np.rot90(plain, -1)).mean() < 2
    assert abs(turned - plain).mean() > 10


CLIPS = (
    "bikes_h264_640x272.mp4",
    "av1_640x360.mkv",
    "cockatoo_h264_yuv444_1280x720.mp4",
    "portrait_beach_h264_360x640.mp4",
)


@pytest.mark.parametrize("clip", CLIPS)
def test_frames_of_videos_are_close_to_the_codec_s(media, clip):
    """`pack_video` scales planes of luma and chroma by swscale, the processor RGB by Pillow.

    docs/export.md states the difference; a shift by one pixel would be several times as large.
    """
    packed = square(pack_video(media / clip, mode="frames", num_frames=2, budget=512), 224)
    with av.open(str(media / clip)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    out = processed(Image.fromarray(frame), 224)
    difference = abs(out - packed)
    psnr = 10 * np.log10(255**2 / (difference**2).mean())
    print(f"{clip}: mean {difference.mean():.2f} levels, {psnr:.1f} dB")
    assert difference.mean() < 2
    assert psnr > 39
    shifted = abs(out[:, 1:] - packed[:, :-1])
    assert shifted.mean() > 2 * difference.mean()


def test_constants_are_the_model_s():
    assert processing.CLIP_MEAN == inputs.CLIP_MEAN == vit.IMAGE_MEAN
    assert processing.CLIP_STD == inputs.CLIP_STD == vit.IMAGE_STD


def test_every_kind_of_input_gives_the_same():
    processor = Processor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    image = photo(80, 60)
    array = np.array(image)  # a copy: torch wants to write
    expected = processor(image, return_tensors="np")["pixel_values"][0]
    first = array.transpose(2, 0, 1)
    for same in (array, first, torch.from_numpy(array), torch.from_numpy(first.copy()), [image]):
        out = processor(same, return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(out[0], expected)
    stack = processor.preprocess(np.stack([array, array]), return_tensors="pt")["pixel_values"]
    assert isinstance(stack, torch.Tensor)
    np.testing.assert_array_equal(stack.numpy(), np.stack([expected, expected]))
    grey = image.convert("L")
    out = processor([grey, np.asarray(grey), np.asarray(grey)[..., None]], return_tensors="np")
    np.testing.assert_array_equal(out["pixel_values"][0], out["pixel_values"][1])
    np.testing.assert_array_equal(out["pixel_values"][0], out["pixel_values"][2])
    alpha = processor(image.convert("RGBA"), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(alpha, expected)
    assert isinstance(processor([image, image])["pixel_values"], list)


def test_each_setting_does_what_it_says():
    processor = Processor(size={"shortest_edge": 30}, crop_size={"height": 20, "width": 24})
    image = photo(60, 60)

    def run(**settings):
        return processor(image, return_tensors="np", **settings)["pixel_values"][0]

    assert run().shape == (3, 20, 24)
    assert run(do_center_crop=False).shape == (3, 30, 30)
    assert run(do_center_crop=False, size={"height": 10, "width": 40}).shape == (3, 10, 40)
    assert run(do_center_crop=False, do_resize=False).shape == (3, 60, 60)
    assert run(crop_size={"height": 8, "width": 6}).shape == (3, 8, 6)
    raw = run(do_normalize=False, do_rescale=False)
    np.testing.assert_array_equal(raw, raw.round())
    np.testing.assert_allclose(run(do_normalize=False), raw / 255, rtol=1e-6)
    np.testing.assert_allclose(run(do_normalize=False, rescale_factor=2.0), raw * 2)
    half = run(image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.5, 1.0])
    expected = (raw / 255 - 0.5) / np.array([0.25, 0.5, 1.0])[:, None, None]
    np.testing.assert_allclose(half, expected, atol=1e-6)
    assert abs(run(resample=0) - run()).max() > 0.05


def test_what_is_no_image_is_refused():
    processor = Processor()
    with pytest.raises(ValueError, match=r"uint8 levels.*float64 \[8, 8, 3\]"):
        processor(np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match=r"uint8 levels.*\[8\]"):
        processor(np.zeros(8, np.uint8))
    with pytest.raises(ValueError, match=r"20 x 10 pixels is smaller than crop_size 448 x 448"):
        processor(Image.new("RGB", (20, 10)), do_resize=False)
