from __future__ import annotations

import numpy as np
import pytest

from codecvit.codec.colour import YuvCode, yuv_to_rgb

BT601, BT709 = (0.299, 0.114), (0.2126, 0.0722)


@pytest.mark.parametrize(
    ("code", "yuv", "rgb"),
    [
        # Colour bars of ITU-R BT.601 and BT.709 in 8 bits.
        (YuvCode(*BT601, False), (16, 128, 128), (0, 0, 0)),
        (YuvCode(*BT601, False), (235, 128, 128), (255, 255, 255)),
        (YuvCode(*BT601, False), (81, 90, 240), (254, 0, 0)),
        (YuvCode(*BT601, False), (145, 54, 34), (0, 255, 1)),
        (YuvCode(*BT709, False), (63, 102, 240), (255, 1, 0)),
        (YuvCode(*BT601, True), (76, 85, 255), (254, 0, 0)),
        (YuvCode(*BT601, True), (128, 128, 128), (128, 128, 128)),
    ],
)
def test_known_colours(code, yuv, rgb):
    pixels = np.array(yuv, np.uint8).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(yuv_to_rgb(pixels, code)[0, 0, 0].astype(int), rgb, atol=1)


def test_matrix_round_trip():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (500, 3)).astype(float)
    for kr, kb in (BT601, BT709, (0.2627, 0.0593)):
        y = rgb @ [kr, 1 - kr - kb, kb]
        u = (rgb[:, 2] - y) / (2 * (1 - kb)) + 128
        v = (rgb[:, 0] - y) / (2 * (1 - kr)) + 128
        yuv = np.clip(np.rint(np.stack([y, u, v], axis=1)), 0, 255).astype(np.uint8)
        back = yuv_to_rgb(yuv[:, :, None, None], YuvCode(kr, kb, True))[:, 0, 0]
        assert np.abs(back - rgb).max() <= 2
