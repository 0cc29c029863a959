"""Colour jitter and grey: what each strength does, how often, and that nothing else draws."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from PIL import Image

from codecvit.__main__ import main
from codecvit.data.augment import AugmentConfig
from codecvit.data.colours import change_colours
from codecvit.data.pipeline import make_loader
from codecvit.data.records import RecordSet

GREY = np.array([0.299, 0.587, 0.114])


def picture(seed=0, side=24):
    """Smooth colours away from the ends, so that few values are clipped."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(70, 180, (3, 3, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR))


def changed(count=300, **options):
    config = AugmentConfig(jitter=1.0, **options)
    for seed in range(count):
        yield change_colours(picture(), config, np.random.default_rng(seed)).astype(float)


def grey(rgb):
    return rgb.astype(float) @ GREY


def test_without_strengths_nothing_is_drawn_and_nothing_changes():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert change_colours(picture(), AugmentConfig(flip=0.5), rng) is not None
    np.testing.assert_array_equal(change_colours(picture(), AugmentConfig(), rng), picture())
    assert rng.bit_generator.state == before


@pytest.mark.parametrize("strength", [0.1, 0.3])
def test_brightness_is_one_factor(strength):
    factors = [(rgb / picture()).mean() for rgb in changed(brightness=strength)]
    assert 1 - strength <= min(factors) < 1 - 0.9 * strength
    assert 1 + 0.9 * strength < max(factors) <= 1 + strength + 0.005
    for rgb in changed(5, brightness=strength):
        ratio = rgb / picture()
        assert np.abs(ratio - ratio.mean()).max() < 0.01


def test_contrast_keeps_the_mean_and_scales_the_spread():
    spreads = []
    for rgb in changed(contrast=0.3):
        assert abs(grey(rgb).mean() - grey(picture()).mean()) < 0.6
        spreads.append(grey(rgb).std() / grey(picture()).std())
    assert 0.69 < min(spreads) < 0.75 and 1.25 < max(spreads) < 1.31


def test_saturation_keeps_the_grey_of_each_pixel():
    spreads = []
    for rgb in changed(saturation=0.4):
        assert np.abs(grey(rgb) - grey(picture())).max() < 1.2
        spreads.append((rgb - grey(rgb)[..., None]).std())
    plain = (picture() - grey(picture())[..., None]).std()
    assert 0.58 < min(spreads) / plain < 0.66 and 1.34 < max(spreads) / plain < 1.42


def test_hue_turns_the_colour_circle():
    """A plain colour of hue 0.3 comes out between 0.2 and 0.4, as light as it was."""
    plain = np.tile(
        (np.array(colorsys.hsv_to_rgb(0.3, 0.6, 0.8)) * 255).astype(np.uint8), (4, 4, 1)
    )
    config, hues = AugmentConfig(jitter=1.0, hue=0.1), []
    for seed in range(200):
        rgb = change_colours(plain, config, np.random.default_rng(seed))
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb[0, 0] / 255)
        assert abs(saturation - 0.6) < 0.03 and abs(value - 0.8) < 0.01
        hues.append(hue)
    assert 0.19 < min(hues) < 0.22 and 0.38 < max(hues) < 0.41


def test_a_hue_below_red_wraps_around():
    plain = np.full((2, 2, 3), (200, 0, 0), np.uint8)
    config = AugmentConfig(jitter=1.0, hue=0.1)
    found = np.stack([change_colours(plain, config, np.random.default_rng(s)) for s in range(40)])
    assert (found[..., 0] == 200).all() and found[..., 1].any() and found[..., 2].any()


@pytest.mark.parametrize("options", [{"grey": 0.2}, {"jitter": 0.2, "brightness": 0.4}])
def test_probabilities(options):
    config = AugmentConfig(**options)
    count = 2000
    hits = 0
    for seed in range(count):
        rgb = change_colours(picture(side=3), config, np.random.default_rng(seed))
        if (rgb != picture(side=3)).any():
            hits += 1
            assert "jitter" in options or (rgb == rgb[..., :1]).all()
    assert abs(hits - 0.2 * count) < 4 * np.sqrt(count * 0.16)


def test_the_four_come_in_random_order():
    """Contrast before brightness and after it differ where values are clipped or rounded."""
    config = AugmentConfig(jitter=1.0, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.3)
    seen = {
        change_colours(picture(), config, np.random.default_rng(seed)).tobytes()
        for seed in range(50)
    }
    assert len(seen) == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jitter": 0.8}, "give both, or neither"),
        ({"hue": 0.1}, "give both, or neither"),
        ({"jitter": 1.0, "hue": 0.6}, "augment.hue = 0.6 must lie in 0..0.5"),
        ({"grey": -0.1}, "augment.grey"),
        ({"jitter": 1.0, "contrast": 1.5}, "augment.contrast"),
    ],
)
def test_strengths_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**options)


def test_the_loader_of_pictures_changes_colours_and_that_of_patches_refuses(tmp_path, write_set):
    Image.fromarray(picture(side=32)).save(tmp_path / "a.png")
    options = ["--size", "32", "--patch", "8", "--workers", "0", "--out", str(tmp_path)]
    assert main(["pack", str(tmp_path / "a.png"), *options]) == 0
    records = RecordSet(tmp_path / "image")
    batches = []
    for augment in (AugmentConfig(), AugmentConfig(grey=1.0)):
        with make_loader(records, batch_size=1, budget=16, augment=augment) as loader:
            batches.append(next(loader)["patches"].reshape(-1, 3).astype(float))
    assert (batches[1] == batches[1][:, :1]).all()
    np.testing.assert_allclose(batches[1][:, 0], batches[0] @ GREY, atol=0.51)
    with pytest.raises(ValueError, match="neither cropped nor recoloured"):
        make_loader(
            write_set(tmp_path / "set"), batch_size=1, budget=16, augment=AugmentConfig(grey=1.0)
        )
