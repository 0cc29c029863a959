"""JAX and PyTorch give the same numbers in float32, and only with every position axis in place."""

import itertools

import jax
import numpy as np
import pytest
import torch

from codecvit import PatchSequence
from codecvit.convert import torch_input
from codecvit.models import ViT, ViTConfig

SIZES = {
    "Ti": ViTConfig.from_variant("Ti/14"),
    "B width, 2 blocks, patch 16": ViTConfig.from_variant("B/16", depth=2),
}
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=SIZES, ids=lambda name: name.split(" ")[0])
def sized(request, make_params):
    config = SIZES[request.param]
    return config, make_params(config)


def run_jax(config, params, sequences):
    """[tokens, pooled, hidden states] of sequences of equal length."""
    patches = np.stack([sequence.flat() for sequence in sequences])
    positions = np.stack([sequence.positions for sequence in sequences])
    with jax.default_matmul_precision("highest"):
        out = ViT(config).apply({"params": params}, patches, positions, hidden_states=True)
    return [np.asarray(x) for x in (out["tokens"], out["pooled"], *out["hidden_states"])]


def run_torch(model, **arguments):
    with torch.no_grad():
        out = model(**arguments, output_hidden_states=True)
    return [x.numpy() for x in (out.last_hidden_state, out.pooler_output, *out.hidden_states)]


def difference(ours, theirs):
    assert len(ours) == len(theirs)
    assert all(a.shape == b.shape for a, b in zip(ours, theirs, strict=True))
    return max(float(abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def dense(seed, config, frames, rows=6, columns=9):
    """A whole image or video: sequences for JAX, pixels [B, 3, T, height, width] for PyTorch."""
    rng = np.random.default_rng(seed)
    P = config.patch
    video = rng.integers(0, 256, (2, frames, rows * P, columns * P, 3), np.uint8)
    patches = video.reshape(2, frames, rows, P, columns, P, 3).transpose(0, 1, 2, 4, 3, 5, 6)
    positions = np.stack(np.indices((frames, rows, columns)), -1).reshape(-1, 3).astype(np.int32)
    sequences = [PatchSequence(x.reshape(-1, P, P, 3), positions) for x in patches]
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = ((video / 255 - mean) / std).transpose(0, 4, 1, 2, 3).astype(np.float32)
    return sequences, torch.from_numpy(pixels)


def test_codec_input(sized, torch_model, make_sequence):
    config, params = sized
    sequences = [make_sequence(seed, patch=config.patch) for seed in (1, 2)]
    ours = run_jax(config, params, sequences)
    assert len(ours) == 2 + config.depth + 1
    theirs = run_torch(torch_model(config, params), **torch_input(sequences))
    assert difference(ours, theirs) < TOLERANCE


def test_dense_image(sized, torch_model):
    config, params = sized
    sequences, pixels = dense(3, config, frames=1)
    model = torch_model(config, params, attention="eager")
    theirs = run_torch(model, pixel_values=pixels[:, :, 0])
    assert difference(run_jax(config, params, sequences), theirs) < TOLERANCE


def test_dense_video(sized, torch_model):
    config, params = sized
    sequences, pixels = dense(4, config, frames=4)
    theirs = run_torch(torch_model(config, params), pixel_values=pixels)
    assert difference(run_jax(config, params, sequences), theirs) < TOLERANCE


def test_video_over_the_whole_time_axis(small, torch_model):
    config, params = small
    sequences, pixels = dense(5, config, frames=4)
    slots = np.array([0, 21, 42, 63], np.int32)
    spread = sequences[0].positions.copy()
    spread[:, 0] = slots[spread[:, 0]]
    sequences = [PatchSequence(sequence.patches, spread) for sequence in sequences]
    theirs = run_torch(
        torch_model(config, params), pixel_values=pixels, patch_positions=torch.from_numpy(spread)
    )
    assert difference(run_jax(config, params, sequences), theirs) < TOLERANCE


AXES = [order for order in itertools.permutations(range(3)) if order != (0, 1, 2)]


@pytest.mark.parametrize("order", AXES, ids=lambda order: "".join("thw"[axis] for axis in order))
def test_exchanged_axes_are_far_off(small, torch_model, make_sequence, order):
    config, params = small
    sequence = make_sequence(6)
    arguments = torch_input(sequence)
    arguments["patch_positions"] = arguments["patch_positions"][..., list(order)]
    theirs = run_torch(torch_model(config, params), **arguments)
    ours = run_jax(config, params, [sequence])
    assert difference(ours[:1], theirs[:1]) > 1000 * TOLERANCE
    assert difference(ours[1:2], theirs[1:2]) > 30 * TOLERANCE


@pytest.mark.parametrize("axis", range(3), ids="thw")
def test_one_axis_permuted_along_the_tokens_is_far_off(small, torch_model, make_sequence, axis):
    config, params = small
    sequence = make_sequence(7)
    arguments = torch_input(sequence)
    arguments["patch_positions"][..., axis] = arguments["patch_positions"][..., axis].flip(1)
    theirs = run_torch(torch_model(config, params), **arguments)
    ours = run_jax(config, params, [sequence])
    assert difference(ours[:1], theirs[:1]) > 1000 * TOLERANCE
    assert difference(ours[1:2], theirs[1:2]) > 30 * TOLERANCE
