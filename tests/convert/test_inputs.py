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


def test_unequal_lengths_are_padded_and_masked(make_sequence):
    short, long = make_sequence(0, length=3, patch=3), make_sequence(1, length=5, patch=3)
    arguments = torch_input([short, long])
    np.testing.assert_array_equal(arguments["attention_mask"], [[1, 1, 1, 0, 0], [1] * 5])
    assert not arguments["pixel_values"][0, :, :, 9:].any()
    assert not arguments["patch_positions"][0, 3:].any()
    alone = torch_input(short)
    assert "attention_mask" not in alone
    assert torch.equal(arguments["pixel_values"][0, :, :, :9], alone["pixel_values"][0])


def test_packed_patches_follow_each_other(make_sequence):
    short, long = make_sequence(0, length=3, patch=3), make_sequence(1, length=5, patch=3)
    arguments = torch_input([short, long], packed=True)
    assert arguments["pixel_values"].shape == (8, 27)
    assert arguments["lengths"].tolist() == [3, 5]
    np.testing.assert_array_equal(arguments["patch_positions"][3:], long.positions)
    level = long.patches[1, 2, 0, 1]  # patch 1, row 2, column 0, green
    found = arguments["pixel_values"][4].reshape(3, 3, 3)[2, 0, 1]
    assert abs(float(found) - (level / 255 - 0.4578275) / 0.26130258) < 1e-5


def test_what_does_not_fit_is_named(make_sequence):
    with pytest.raises(ValueError, match=r"one patch side, got sides \[.*16"):
        torch_input([make_sequence(0, length=5), make_sequence(0, length=5, patch=16)])
    with pytest.raises(ValueError, match=r"on a grid must be of one length, got \[5, 6\]"):
        torch_input([make_sequence(0, length=5), make_sequence(0, length=6)], grid=(1, 1))
    with pytest.raises(ValueError, match="drop one of packed and grid"):
        torch_input(make_sequence(0, length=5), grid=(1, 1), packed=True)
    with pytest.raises(ValueError, match="one or more"):
        torch_input([])
    with pytest.raises(ValueError, match="5 patches does not fill frames of 2 x 2"):
        torch_input(make_sequence(0, length=5), grid=(2, 2))
    low = PatchSequence(np.zeros((1, 14, 14, 3), np.uint8), np.array([[0, 2, 0]], np.int32))
    with pytest.raises(ValueError, match=r"row 2 and column 0, outside of the 1 x 1 grid"):
        torch_input(low, grid=(1, 1))
