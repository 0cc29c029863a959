"""Patch sequences as arguments of the PyTorch model."""

import numpy as np
import pytest
import torch

from codecvit import PatchSequence
from codecvit.convert import torch_input


def test_one_row_of_patches(make_sequence):
    sequence = make_sequence(0, length=5, patch=3)
    arguments = torch_input(sequence)
    pixels = arguments["pixel_values"]
    assert pixels.shape == (1, 3, 3, 15)
    assert pixels.dtype == torch.float32
    k, row, column, channel = 4, 2, 1, 0
    level = sequence.patches[k, row, column, channel]
    expected = (level / 255 - 0.48145466) / 0.26862954
    assert abs(float(pixels[0, channel, row, 3 * k + column]) - expected) < 1e-5
    np.testing.assert_array_equal(arguments["patch_positions"][0].numpy(), sequence.positions)


def test_frames_and_indices_give_the_same_embedding(small, torch_model, make_sequence):
    model = torch_model(*small)
    sequences = [make_sequence(seed, length=24, rows=3, columns=4) for seed in (1, 2)]
    tiled = torch_input(sequences, grid=(3, 4))
    assert tiled["pixel_values"].shape == (2, 3, 2, 42, 56)
    with torch.no_grad():
        a, b = model(**tiled), model(**torch_input(sequences))
    torch.testing.assert_close(a.last_hidden_state, b.last_hidden_state, rtol=0, atol=1e-5)
    torch.testing.assert_close(a.pooler_output, b.pooler_output, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_named(make_sequence):
    with pytest.raises(ValueError, match=r"equal length.*\(5, 14\), \(6, 14\)"):
        torch_input([make_sequence(0, length=5), make_sequence(0, length=6)])
    with pytest.raises(ValueError, match="one or more"):
        torch_input([])
    with pytest.raises(ValueError, match="5 patches does not fill frames of 2 x 2"):
        torch_input(make_sequence(0, length=5), grid=(2, 2))
    low = PatchSequence(np.zeros((1, 14, 14, 3), np.uint8), np.array([[0, 2, 0]], np.int32))
    with pytest.raises(ValueError, match=r"row 2 and column 0, outside of the 1 x 1 grid"):
        torch_input(low, grid=(1, 1))
