"""An image-text model ready to use: `codecvit.load_clip`. Needs no torch.

Shape suffixes: N images or texts, Y labels, B batch, E embedding.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from ..codec.image import image_sequence, open_image
from ..data.tokenizers import Tokenizer
from ..models import clip
from ..sequence import PatchSequence
from .openclip.read import read_clip
from .openclip.settings import ClipOrigin, Parts

ImageInput = str | os.PathLike[str] | np.ndarray | PatchSequence

_ROWS = 16
_LENGTH_STEP = 64
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def load_clip(
    path: str | Path, *, tokenizer: str | Path | None = None, ema: bool = False
) -> ImageTextModel:
    """Opens an image-text model.

    Args:
      path: a work directory of `codecvit train-pairs` or one of its checkpoints, what `codecvit
        import` or `codecvit export` wrote, or a folder of OpenVision's weights.
      tokenizer: its file, where `path` does not tell it.
      ema: of a checkpoint, the moving average of the encoder's parameters instead of them.

    Returns:
      The model.

    Raises:
      ValueError: `path` is none of these, its weights don't fit its configuration, it has no text
        tower, or its tokenizer is not there.
    """
    found = read_clip(path, ema=ema)
    if found.parts.text is None:
        raise ValueError(f"{path} has no text tower: there is nothing to compare images with")
    opened = found.tokenizer(tokenizer)
    assert opened is not None
    return ImageTextModel(found.parts, found.params, opened, found.origin)


class ImageTextModel:
    """Images and texts -> one embedding.

    Attributes:
      parts: sizes of the model.
      params: its parameters, the tree of docs/architecture.md.
      tokenizer: what makes ids of texts.
      origin: how images are prepared.
    """

    def __init__(
        self, parts: Parts, params: Mapping[str, Any], tokenizer: Tokenizer, origin: ClipOrigin
    ) -> None:
        self.parts, self.params = parts, params
        self.tokenizer, self.origin = tokenizer, origin
        config = parts.clip()
        self._image = jax.jit(functools.partial(_first, clip.embed_image, config))
        self._text = jax.jit(functools.partial(_first, clip.embed_text, config))

    def embed_images(self, images: Sequence[ImageInput]) -> np.ndarray:
        """Embeddings of images.

        Args:
          images: paths of files, levels uint8 [height, width, 3] (RGB), or packed patch sequences
            of the model's patch side.

        Returns:
          float32 [N, E], unit rows.

        Raises:
          ValueError: an image is no such thing.
          MediaError: a file is missing, damaged or no image.
        """
        rows_NE = np.zeros((len(images), self._embed_dim), np.float32)
        for start in range(0, len(images), _ROWS):
            # Decoded batch by batch: there may be many.
            sequences = [self._sequence(image) for image in images[start : start + _ROWS]]
            out = self._image(self.params, _pad(sequences))
            rows_NE[start : start + len(sequences)] = np.asarray(out)[: len(sequences)]
        return rows_NE

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of texts; of a long one the last tokens are left out.

        Returns:
          float32 [N, E], unit rows.
        """
        assert self.parts.text is not None
        length = self.parts.text.context_length
        rows_NE = np.zeros((len(texts), self._embed_dim), np.float32)
        for start in range(0, len(texts), _ROWS):
            part = texts[start : start + _ROWS]
            ids_BT = np.zeros((_power_of_two(len(part)), length), np.int32)
            ids_BT[: len(part)] = [self.tokenizer.encode(text, length) for text in part]
            rows_NE[start : start + len(part)] = np.asarray(self._text(self.params, ids_BT))[
                : len(part)
            ]
        return rows_NE

    def classify(
        self,
        images: Sequence[ImageInput],
        labels: Sequence[str],
        templates: Sequence[str] = ("a photo of a {}.",),
    ) -> np.ndarray:
        """How well each label fits each image, by the embeddings of texts about it.

        Args:
          images: as for `embed_images`.
          labels: names of classes.
          templates: texts with {} for a name; a label's embedding is the mean of theirs (Radford et
            al. 2021, section 3.1.4).

        Returns:
          float32 [N, Y]: shares that sum to 1, or of a model of the sigmoid loss the probability of
          each label by itself.

        Raises:
          ValueError: there is no label, or a template has not one {}.
        """
        if not labels or not templates:
            raise ValueError("labels and templates must each hold at least one")
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} must hold {{}} once, for the name")
        texts = [template.replace("{}", label) for label in labels for template in templates]
        texts_YtE = self.embed_texts(texts).reshape(len(labels), len(templates), -1)
        labels_YE = texts_YtE.mean(axis=1)
        labels_YE /= np.linalg.norm(labels_YE, axis=1, keepdims=True)
        scale = np.exp(np.float32(self.params["logit_scale"]["value"]))
        logits_NY = scale * self.embed_images(images) @ labels_YE.T
        if self.parts.bias:
            logits_NY = logits_NY + np.float32(self.params["logit_bias"]["value"])
            return (0.5 * (1 + np.tanh(0.5 * logits_NY))).astype(np.float32)
        powers_NY = np.exp(logits_NY - logits_NY.max(axis=1, keepdims=True))
        return (powers_NY / powers_NY.sum(axis=1, keepdims=True)).astype(np.float32)

    @property
    def _embed_dim(self) -> int:
        assert self.parts.text is not None
        return self.parts.text.embed_dim

    def _sequence(self, image: ImageInput) -> PatchSequence:
        patch = self.parts.vision.patch
        if isinstance(image, PatchSequence):
            if image.patch != patch:
                raise ValueError(
                    f"a sequence has patches of {image.patch} x {image.patch} pixels, the model "
                    f"takes patch = {patch}"
                )
            return image
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    "an image must be levels uint8 [height, width, 3], got "
                    f"{image.dtype} {list(image.shape)}"
                )
            picture = Image.fromarray(image)
        else:
            picture = open_image(image, image)
        return image_sequence(prepare(picture, self.origin), patch)


def prepare(picture: Image.Image, origin: ClipOrigin) -> np.ndarray:
    """The square that a model sees of an RGB image.

    Args:
      picture: RGB.
      origin: side, filter, and whether the whole image is squeezed into the square or its centre is
        cut out, the long side rounded to a pixel.

    Returns:
      uint8 [side, side, 3].
    """
    side, filter_ = origin.image_size, _RESAMPLING[origin.interpolation]
    if origin.resize_mode == "squash":
        return np.asarray(picture.resize((side, side), filter_))
    short = min(picture.size)
    width, height = (round(length * side / short) for length in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    levels = np.asarray(picture.resize((width, height), filter_))
    return levels[top : top + side, left : left + side]


def _first(embed: Any, config: Any, params: Any, batch: Any) -> jax.Array:
    return embed(config, params, batch)[0]


def _power_of_two(rows: int) -> int:
    return 1 << (rows - 1).bit_length()


def _pad(sequences: Sequence[PatchSequence]) -> dict[str, np.ndarray]:
    """A batch of few different shapes, so that few are compiled; padding changes no number."""
    longest = max(len(sequence) for sequence in sequences)
    padded = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
    rows = _power_of_two(len(sequences))
    batch = {
        "patches": np.zeros((rows, padded, sequences[0].patch ** 2 * 3), np.uint8),
        "positions": np.zeros((rows, padded, 3), np.int32),
        "length": np.zeros(rows, np.int32),
    }
    for row, sequence in enumerate(sequences):
        batch["patches"][row, : len(sequence)] = sequence.flat()
        batch["positions"][row, : len(sequence)] = sequence.positions
        batch["length"][row] = len(sequence)
    return batch
