"""JAX and PyTorch give the same numbers in float32, and only with every position axis in place.

Every size of `models.config.SIZES` with two blocks, in every form in which the PyTorch model takes
its input. JAX gets the same patches as padded sequences.
"""

import itertools

import jax
import numpy as np
import pytest
import torch

from codecvit import PatchSequence
from codecvit.convert import torch_input
from codecvit.models import ViT, ViTConfig
from codecvit.models.config import SIZES

TOKENS = 1e-4  # largest difference of a token, and of a hidden state as a share of the largest one
POOLED = 1e-5  # of the pooled embedding, times max(1, its largest entry)
ROW = 64  # length to which JAX pads: one compilation per size


class Sized:
    """Both models of one size with the same weights."""

    def __init__(self, config, params, torch_model):
        self.config, self.params = config, params
        self.torch = torch_model(config, params)
        self._apply = jax.jit(
            lambda *batch: ViT(config).apply({"params": params}, *batch, hidden_states=True)
        )

    def jax(self, sequences):
        """(tokens, pooled, hidden states [depth + 1, L, D]) of each sequence."""
        flat = np.zeros((len(sequences), ROW, 3 * self.config.patch**2), np.uint8)
        positions = np.zeros((len(sequences), ROW, 3), np.int32)
        for row, sequence in enumerate(sequences):
            flat[row, : len(sequence)] = sequence.flat()
            positions[row, : len(sequence)] = sequence.positions
        lengths = np.array([len(sequence) for sequence in sequences], np.int32)
        with jax.default_matmul_precision("highest"):
            out = jax.device_get(self._apply(flat, positions, lengths))
        hidden = np.stack(out["hidden_states"], 1)
        return [
            (out["tokens"][row, :length], out["pooled"][row], hidden[row, :, :length])
            for row, length in enumerate(lengths)
        ]

    def pytorch(self, arguments, lengths):
        """The same of the PyTorch model, whose tokens are cut at the lengths."""
        with torch.no_grad():
            out = self.torch(**arguments, output_hidden_states=True)
        tokens, hidden = out.last_hidden_state, torch.stack(out.hidden_states, -3)
        if tokens.ndim == 2:  # packed
            rows = zip(tokens.split(lengths), hidden.split(lengths, dim=-2), strict=True)
        else:
            rows = [(t[:n], h[:, :n]) for t, h, n in zip(tokens, hidden, lengths, strict=True)]
        return [
            (t.numpy(), pooled.numpy(), h.numpy())
            for (t, h), pooled in zip(rows, out.pooler_output, strict=True)
        ]

    def require_equal(self, sequences, arguments):
        lengths = [len(sequence) for sequence in sequences]
        ours, theirs = self.jax(sequences), self.pytorch(arguments, lengths)
        assert len(theirs) == len(ours)
        for one, other in zip(ours, theirs, strict=True):
            assert [x.shape for x in one] == [x.shape for x in other]
            assert abs(one[0] - other[0]).max() < TOKENS
            assert abs(one[1] - other[1]).max() < POOLED * max(1, abs(one[1]).max())
            assert abs(one[2] - other[2]).max() < TOKENS * max(1, abs(one[2]).max())


@pytest.fixture(scope="module", params=SIZES)
def sized(request, make_params, torch_model):
    patch = 16 if request.param == "B" else 14
    config = ViTConfig.from_variant(f"{request.param}/{patch}", depth=2)
    return Sized(config, make_params(config), torch_model)


def dense(seed, patch, frames, rows=4, columns=5, t=None):
    """A whole clip: a sequence for JAX, pixels [3, T, height, width] for PyTorch."""
    rng = np.random.default_rng(seed)
    video = rng.integers(0, 256, (frames, rows * patch, columns * patch, 3), np.uint8)
    patches = video.reshape(frames, rows, patch, columns, patch, 3).swapaxes(2, 3)
    positions = np.stack(np.indices((frames, rows, columns)), -1).reshape(-1, 3).astype(np.int32)
    if t is not None:
        positions[:, 0] = np.array(t)[positions[:, 0]]
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = ((video / 255 - mean) / std).transpose(3, 0, 1, 2).astype(np.float32)
    sequence = PatchSequence(patches.reshape(-1, patch, patch, 3), positions)
    return sequence, torch.from_numpy(pixels)


def pairs(patch, **options):
    """Two clips: their sequences, their pixels."""
    return zip(*(dense(seed, patch, **options) for seed in (3, 4)), strict=True)


def image(patch, make_sequence):
    sequences, pixels = pairs(patch, frames=1)
    return sequences, {"pixel_values": torch.stack(pixels)[:, :, 0]}


def video(patch, make_sequence):
    sequences, pixels = pairs(patch, frames=3)
    return sequences, {"pixel_values": torch.stack(pixels)}


def video_over_the_time_axis(patch, make_sequence):
    sequences, pixels = pairs(patch, frames=3, t=(0, 32, 63))
    positions = torch.from_numpy(sequences[0].positions)
    return sequences, {"pixel_values": torch.stack(pixels), "patch_positions": positions}


def gathered(patch, make_sequence):
    """64 frames, of which `visible_indices` keep 40 patches."""
    whole, pixels = pairs(patch, frames=64, rows=2, columns=3)
    rng = np.random.default_rng(5)
    kept = [np.sort(rng.choice(64 * 6, 40, replace=False)) for _ in range(2)]
    sequences = [
        PatchSequence(sequence.patches[index], sequence.positions[index])
        for sequence, index in zip(whole, kept, strict=True)
    ]
    index = torch.from_numpy(np.stack(kept))
    return sequences, {"pixel_values": torch.stack(pixels), "visible_indices": index}


def selected(patch, make_sequence, lengths=(40, 40), **options):
    sequences = [
        make_sequence(seed, length=length, patch=patch, rows=4, columns=5)
        for seed, length in enumerate(lengths)
    ]
    return sequences, torch_input(sequences, **options)


def tiles_with_indices(patch, make_sequence):
    return selected(patch, make_sequence, grid=(4, 5))


def row_with_positions(patch, make_sequence):
    return selected(patch, make_sequence)


def padded(patch, make_sequence):
    return selected(patch, make_sequence, lengths=(23, 50))


def packed(patch, make_sequence):
    return selected(patch, make_sequence, lengths=(23, 50), packed=True)


def packed_grids(patch, make_sequence):
    """A video and an image of another shape in one row, placed by `grid_thw` alone."""
    shapes = ((2, 4, 5), (1, 3, 7))
    sequences = [
        dense(seed, patch, frames, rows, columns)[0]
        for seed, (frames, rows, columns) in enumerate(shapes)
    ]
    arguments = torch_input(sequences, packed=True)
    return sequences, {
        "pixel_values": arguments["pixel_values"],
        "grid_thw": torch.tensor(shapes),
    }


MODES = (
    image,
    video,
    video_over_the_time_axis,
    gathered,
    tiles_with_indices,
    row_with_positions,
    padded,
    packed,
    packed_grids,
)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__)
def test_every_input_of_every_size(sized, make_sequence, mode):
    sized.require_equal(*mode(sized.config.patch, make_sequence))


# --- Positions matter ----------------------------------------------------------------------------

AXES = [order for order in itertools.permutations(range(3)) if order != (0, 1, 2)]


def exchange(order):
    return lambda positions: positions[..., list(order)]


def reverse(axis):
    def along_the_tokens(positions):
        positions = positions.clone()
        positions[..., axis] = positions[..., axis].flip(-1)
        return positions

    return along_the_tokens


def shift(axis):
    return lambda positions: positions + torch.eye(3, dtype=torch.int64)[axis]


CHANGES = {
    **{f"order {''.join('thw'[axis] for axis in order)}": exchange(order) for order in AXES},
    **{f"{'thw'[axis]} reversed": reverse(axis) for axis in range(3)},
    **{f"{'thw'[axis]} shifted by one": shift(axis) for axis in range(3)},
}


@pytest.fixture(scope="module")
def tiny(make_params, torch_model):
    config = ViTConfig(width=64, depth=2, num_heads=2, mlp_dim=96, patch=14)
    return Sized(config, make_params(config), torch_model)


@pytest.mark.parametrize("form", ["row", "packed"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_axis_is_far_off(tiny, make_sequence, change, form):
    """The published code is no true rotation, so that even a common shift is seen."""
    sequence = make_sequence(6, length=60)
    arguments = torch_input(sequence, packed=form == "packed")
    arguments["patch_positions"] = CHANGES[change](arguments["patch_positions"])
    ((tokens, pooled, _),) = tiny.pytorch(arguments, [60])
    ((our_tokens, our_pooled, _),) = tiny.jax([sequence])
    assert abs(tokens - our_tokens).max() > 100 * TOKENS
    assert abs(pooled - our_pooled).max() > 100 * POOLED
