"""What the image-text exchange tests share: small models with weights that all count."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from codecvit.convert.openclip.settings import Parts
from codecvit.models.captioning import CaptionConfig
from codecvit.models.clip import init
from codecvit.models.openvision import OpenVisionConfig
from codecvit.models.text import TextConfig


def small_parts(*, patch=8, bias=False, decoder=None, text=True):
    """Two blocks everywhere; widths, heads and MLPs that differ between the parts."""
    vision = OpenVisionConfig(width=48, depth=2, num_heads=3, mlp_dim=80, patch=patch)
    texts = None
    if text:
        texts = TextConfig(
            width=32,
            depth=2,
            num_heads=2,
            mlp_dim=72,
            vocab_size=64,
            context_length=12,
            embed_dim=24,
        )
    captions = None
    if decoder is not None:
        captions = CaptionConfig(
            kind=decoder,
            width=40,
            depth=1,
            num_heads=2,
            mlp_dim=56,
            vocab_size=64,
            output_length=7,
            image_width=48,
            text_width=32 if decoder == "queries" else None,
        )
    return Parts(vision, texts, captions, bias)


def random_weights(parts, seed=0):
    """Parameters in which no leaf is negligible: the class token, norms and biases matter."""
    shapes = jax.eval_shape(lambda key: init(parts.clip(), key), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "value":
            return np.float32(rng.uniform(1.0, 3.0))
        draws = rng.standard_normal(leaf.shape).astype(np.float32)
        if name == "kernel":
            return draws * np.float32(leaf.shape[-2] ** -0.5)
        return draws * np.float32(0.3) + np.float32(name == "scale")

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_images(number, rows, columns, patch, seed=0):
    """Levels uint8 [number, rows*patch, columns*patch, 3]."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (number, rows * patch, columns * patch, 3), dtype=np.uint8)


def batch_of(images, patch):
    """Images as a loader's batch: every patch, in raster order."""
    N, height, width, _ = images.shape
    rows, columns = height // patch, width // patch
    cut = images.reshape(N, rows, patch, columns, patch, 3).swapaxes(2, 3)
    h, w = np.divmod(np.arange(rows * columns, dtype=np.int32), columns)
    positions = np.stack([np.zeros_like(h), h, w], -1)
    return {
        "patches": cut.reshape(N, rows * columns, -1),
        "positions": np.broadcast_to(positions, (N, *positions.shape)),
        "length": np.full(N, rows * columns, np.int32),
    }


@pytest.fixture(scope="session")
def make_parts():
    return small_parts


@pytest.fixture(scope="session")
def make_weights():
    return random_weights


@pytest.fixture(scope="session")
def make_images():
    return random_images


@pytest.fixture(scope="session")
def make_batch():
    return batch_of


@pytest.fixture(scope="session")
def clip_in_torch():
    """(parts, params) -> our PyTorch model with these weights."""
    import torch

    from codecvit.convert.hf.configuration_openvision_clip import OpenVisionCLIPConfig
    from codecvit.convert.hf.modeling_openvision_clip import OpenVisionCLIPModel
    from codecvit.convert.openclip.hf_config import to_hf_config
    from codecvit.convert.openclip.names import to_openclip
    from codecvit.convert.openclip.settings import ClipOrigin

    def build(parts, params):
        settings = to_hf_config(parts, ClipOrigin())
        settings.pop("decoder", None)
        model = OpenVisionCLIPModel(OpenVisionCLIPConfig(**settings))
        tensors = to_openclip(params, parts)
        model.load_state_dict({n: torch.from_numpy(np.array(t)) for n, t in tensors.items()})
        return model.eval()

    return build


WORDS = ("a", "an", "the", "dog", "cat", "photo", "of", "bird", "red", "blue", "car", "tree", "run")
PIECES = ("##s", "##ing", ".", ",", "!", "'", "-")


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """A WordPiece vocabulary of OpenVision's kind, smaller than the text tower's."""
    file = tmp_path_factory.mktemp("vocabulary") / "words.txt"
    words = [
        "[PAD]",
        "[bos]",
        "[eos]",
        "[UNK]",
        "[CLS]",
        *WORDS,
        *PIECES,
        *"bcefghijklmnopqrstuvwxyz",
    ]
    file.write_text("\n".join(words) + "\n")
    return file
