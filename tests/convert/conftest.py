"""What the exchange tests share: small encoders with weights that make every parameter count."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import pytest

# Set before transformers is imported: no network, and dynamic modules away from the user's cache.
_MODULES = tempfile.TemporaryDirectory(prefix="codecvit-hf-modules-")
os.environ["HF_MODULES_CACHE"] = _MODULES.name
os.environ["HF_HUB_OFFLINE"] = "1"


def random_params(config, seed=0):
    """A parameter tree in which no leaf is negligible: positions matter, norms and biases too."""
    D, F, K = config.width, config.mlp_dim, 3 * config.patch**2
    rng = np.random.default_rng(seed)

    def draw(*shape, std=None):
        std = shape[-2] ** -0.5 if std is None else std
        return (std * rng.standard_normal(shape)).astype(np.float32)

    def norm(*lead, bias=True):
        scale = 1 + draw(*lead, D, std=0.2)
        return {"scale": scale, "bias": draw(*lead, D, std=0.2)} if bias else {"scale": scale}

    def dense(*lead, fan_in, fan_out):
        kernel = draw(*lead, fan_in, fan_out)
        return {"kernel": kernel, "bias": draw(*lead, fan_out, std=0.2)}

    def attention(*lead):
        return {
            "qkv": dense(*lead, fan_in=D, fan_out=3 * D),
            "out": dense(*lead, fan_in=D, fan_out=D),
        }

    def mlp(*lead):
        return {
            "fc1": dense(*lead, fan_in=D, fan_out=F),
            "fc2": dense(*lead, fan_in=F, fan_out=D),
        }

    depth = config.depth
    return {
        "patch_embed": {"kernel": draw(K, D)},
        "layernorm_pre": norm(),
        "blocks": {
            "norm1": norm(depth),
            "attn": attention(depth),
            "norm2": norm(depth),
            "mlp": mlp(depth),
        },
        "layernorm_post": norm(),
        "head": {
            "probe": draw(1, 1, D, std=1.0),
            "attn": attention(),
            "norm": norm(bias=False),
            "mlp": mlp(),
        },
    }


def random_sequence(seed, length=200, patch=14, rows=16, columns=16, slots=64):
    """A codec-like patch sequence: sorted distinct positions over all slots of the time axis."""
    from codecvit import PatchSequence

    rng = np.random.default_rng(seed)
    index = np.sort(rng.choice(slots * rows * columns, length, replace=False))
    positions = np.stack(np.unravel_index(index, (slots, rows, columns)), -1).astype(np.int32)
    return PatchSequence(
        rng.integers(0, 256, (length, patch, patch, 3), np.uint8, endpoint=False), positions
    )


@pytest.fixture(scope="session")
def small():
    """(config, params) of an encoder that runs in no time: 2 blocks of width 64, 2 heads."""
    from codecvit.models import ViTConfig

    config = ViTConfig(width=64, depth=2, num_heads=2, mlp_dim=96, patch=14)
    return config, random_params(config)


@pytest.fixture(scope="session")
def make_params():
    return random_params


@pytest.fixture(scope="session")
def make_sequence():
    return random_sequence


@pytest.fixture(scope="session")
def torch_model():
    """(config, params, attention="sdpa") -> the PyTorch model with these weights."""
    import torch

    from codecvit.convert.hf.configuration_onevision_encoder import OneVisionEncoderConfig
    from codecvit.convert.hf.modeling_onevision_encoder import OneVisionEncoderModel
    from codecvit.convert.load import Origin, config_to_hf
    from codecvit.convert.names import to_hf

    def build(config, params, attention="sdpa"):
        settings = OneVisionEncoderConfig(
            **config_to_hf(config, Origin()), attn_implementation=attention
        )
        model = OneVisionEncoderModel(settings)
        tensors = {name: torch.from_numpy(t.copy()) for name, t in to_hf(params, config).items()}
        model.load_state_dict(tensors)
        return model.eval()

    return build
