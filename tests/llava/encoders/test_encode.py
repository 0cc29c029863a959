"""From shared frames to features: each encoder's stride, size and normalisation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from codecvit.llava.encoders.encode import FrameInput, encode_frames, normalised

from ..made import texture
from .made import TINY, tiny_tower

WANTED = FrameInput(4, 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), -2)


def pixels(visuals=2, frames=8, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (visuals, frames, size, size, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("name", TINY)
def test_an_encoder_sees_every_kth_frame(name):
    spec, tower = tiny_tower(name)
    shared = pixels()
    found = encode_frames(spec, tower, shared, WANTED)
    own = spec.features(tower, normalised(shared[:, ::2], WANTED), -2)
    assert torch.equal(found, own)
    blind = shared.clone()
    blind[:, 1::2] = 0  # these are for others
    assert torch.equal(encode_frames(spec, tower, blind, WANTED), found)


def test_images_are_one_frame_for_all():
    spec, tower = tiny_tower("siglip")
    assert encode_frames(spec, tower, pixels(frames=1), WANTED).shape == (2, 1, 16, 32)


def test_frames_that_no_stride_gives_are_refused():
    spec, tower = tiny_tower("siglip")
    for shared in (6, 2):
        with pytest.raises(ValueError, match=f"{shared} shared frames are no multiple of the 4"):
            encode_frames(spec, tower, pixels(frames=shared), WANTED)


def test_levels_are_normalised_by_hand():
    levels = torch.zeros(1, 1, 32, 32, 3, dtype=torch.uint8)
    levels[..., 0], levels[..., 1], levels[..., 2] = 255, 51, 0
    found = normalised(levels, WANTED)
    wanted = torch.tensor([(1 - 0.5) / 0.2, (0.2 - 0.4) / 0.3, (0 - 0.3) / 0.4])
    torch.testing.assert_close(found, wanted.expand_as(found))


def test_another_size_is_resized_as_pillow_does_it():
    """Bicubic with antialiasing; Pillow rounds between its passes, so mild contrasts."""
    plain = dataclasses.replace(WANTED, image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    picture = texture(3, 48, 48) // 4 + 90
    for size in (32, 72):
        wanted = np.asarray(Image.fromarray(picture).resize((size, size), 3), np.float32)
        shared = torch.from_numpy(picture)[None, None]
        found = normalised(shared, dataclasses.replace(plain, image_size=size))
        assert found.shape == (1, 1, size, size, 3)
        assert np.abs(found[0, 0].numpy() * 255 - wanted).max() < 1.5
        # At hard edges the kernel leaves the range of levels; nothing of that gets through.
        shared = torch.from_numpy((picture > 120).astype(np.uint8) * 255)[None, None]
        found = normalised(shared, dataclasses.replace(plain, image_size=size))
        assert (found.min(), found.max()) == (0, 1)


def test_features_have_the_dtype_of_the_tower_and_the_chunk_that_is_asked_for():
    spec, tower = tiny_tower("siglip")
    tower.bfloat16()
    assert encode_frames(spec, tower, pixels(), WANTED).dtype == torch.bfloat16
    spec, tower = tiny_tower("vivit")
    with pytest.raises(ValueError, match="chunk = 2 must be num_frames = 4"):
        encode_frames(spec, tower, pixels(), dataclasses.replace(WANTED, chunk=2))
