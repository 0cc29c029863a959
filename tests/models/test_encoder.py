"""The user's encoder: one sequence, many, a loader batch."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from codecvit.models import Encoder, ViT, ViTConfig
from codecvit.sequence import PatchSequence

CFG = ViTConfig(width=64, depth=1, num_heads=2, mlp_dim=64, patch=4)


def sequence(length, seed=0, patch=4):
    rng = np.random.default_rng(seed)
    cells = np.sort(rng.choice(64 * 8 * 8, length, replace=False))
    positions = np.stack(np.unravel_index(cells, (64, 8, 8)), axis=1).astype(np.int32)
    patches = rng.integers(0, 256, (length, patch, patch, 3), dtype=np.uint8)
    return PatchSequence(patches, positions)


@pytest.fixture(scope="module")
def encoder():
    seq = sequence(8)
    init = jax.jit(ViT(CFG).init)
    params = init(jax.random.key(0), seq.flat()[None], seq.positions[None])["params"]
    return Encoder(CFG, params)


def test_one_sequence(encoder):
    seq = sequence(50)
    out = encoder(seq)
    apply = jax.jit(ViT(CFG).apply)
    want = apply({"params": encoder.params}, seq.flat()[None], seq.positions[None])
    assert type(out.tokens) is type(out.pooled) is np.ndarray
    assert out.tokens.dtype == out.pooled.dtype == np.float32
    np.testing.assert_allclose(out.tokens, want["tokens"][0], atol=1e-5)
    np.testing.assert_allclose(out.pooled, want["pooled"][0], atol=1e-5)


def test_many_sequences_keep_their_order_and_share_shapes(encoder):
    lengths = [50, 64, 65, 3, 100, 10, 20, 128]
    sequences = [sequence(n, seed=i) for i, n in enumerate(lengths)]
    outputs = encoder(sequences)
    shapes = encoder._apply._cache_size()
    for seq, out in zip(sequences, outputs, strict=True):
        alone = encoder(seq)
        np.testing.assert_allclose(out.tokens, alone.tokens, atol=1e-5)
        np.testing.assert_allclose(out.pooled, alone.pooled, atol=1e-5)
    encoder([sequence(n, seed=n) for n in (40, 41, 42, 43, 44, 45, 70, 80, 90)])
    # 64 and 128 tokens, each in 8 or 4 rows and in 1: nothing new since.
    assert encoder._apply._cache_size() <= shapes + 2
    assert encoder([]) == []


def test_more_sequences_than_one_batch(encoder):
    sequences = [sequence(4, seed=i) for i in range(19)]
    pooled = np.stack([out.pooled for out in encoder(sequences)])
    np.testing.assert_allclose(pooled[18], encoder(sequences[18]).pooled, atol=1e-5)
    assert len(np.unique(pooled, axis=0)) == 19


def test_loader_batch(encoder):
    sequences = [sequence(n, seed=n) for n in (12, 30)]
    batch = {
        "patches": np.full((2, 30, 48), 7, np.uint8),
        "positions": np.ones((2, 30, 3), np.int32),
        "length": np.array([12, 30], np.int32),
        "index": np.arange(2),
    }
    for row, seq in enumerate(sequences):
        batch["patches"][row, : len(seq)] = seq.flat()
        batch["positions"][row, : len(seq)] = seq.positions
    want = np.stack([encoder(seq).pooled for seq in sequences])
    got = encoder.embed(batch)
    assert got.shape == (2, 64) and got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_other_patch_size_is_named(encoder):
    with pytest.raises(ValueError, match=r"sequence 1 has patches of 6 x 6.*patch = 4"):
        encoder([sequence(4), sequence(4, patch=6)])
    batch = {"patches": np.zeros((1, 4, 108), np.uint8), "positions": None, "length": None}
    with pytest.raises(ValueError, match=r"patches of 6 x 6.*patch = 4"):
        encoder.embed(batch)


def test_bfloat16_encoder_returns_float32(encoder):
    low = Encoder(ViTConfig(**{**vars(CFG), "dtype": "bfloat16"}), encoder.params)
    out = low(sequence(9))
    assert out.tokens.dtype == out.pooled.dtype == np.float32
    np.testing.assert_allclose(out.tokens, encoder(sequence(9)).tokens, atol=0.1)
