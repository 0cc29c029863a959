"""Features of texts and of image files, through whatever function embeds a batch of them.

Batches have one size, so that a compiled function is compiled once; what fills up the last one is
cut off again.

Shapes: N texts or images, D features, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..cluster.features import Features
from ..codec.errors import MediaError
from ..codec.image import image_sequence, read_image

EmbedTexts = Callable[[list[str]], np.ndarray]  # always B texts -> float [B, D]
EmbedImages = Callable[[dict[str, np.ndarray]], np.ndarray]  # a loader's batch -> float [B, D]

_THREADS = 8  # decoding and scaling release the interpreter's lock


def text_embeddings(texts: Sequence[str], embed: EmbedTexts, batch_size: int = 256) -> np.ndarray:
    """Features of texts, in their order.

    Args:
      texts: any number.
      embed: gets `batch_size` texts, always; empty ones fill up the last batch.
      batch_size: texts at once.

    Returns:
      float32 [N, D].

    Raises:
      ValueError: no texts, or `embed` gives other than one row per text.
    """
    return np.concatenate(list(text_batches(texts, embed, batch_size)))


def text_batches(
    texts: Sequence[str], embed: EmbedTexts, batch_size: int = 256
) -> Iterator[np.ndarray]:
    """As `text_embeddings`, batch after batch."""
    if not texts:
        raise ValueError("there are no texts to embed")
    for start in range(0, len(texts), batch_size):
        part = list(texts[start : start + batch_size])
        rows = np.asarray(embed(part + [""] * (batch_size - len(part))), np.float32)
        if rows.ndim != 2 or len(rows) != batch_size:
            raise ValueError(f"embed gave {rows.shape} for {batch_size} texts: one row each")
        yield rows[: len(part)]


def image_embeddings(
    paths: Sequence[str | Path], embed: EmbedImages, *, size: int, patch: int, batch_size: int = 64
) -> Features:
    """Features of image files: the centre of each, its short side scaled to `size`.

    Args:
      paths: image files.
      embed: batch of `patches`, `positions`, `length`, `weight`, `index` as a loader's, always of
        `batch_size` rows -> float [batch_size, D].
      size: side of the view in pixels, a multiple of patch.
      patch: side of a patch in pixels.
      batch_size: images at once.

    Returns:
      Features in the order of the paths; a file that cannot be read has a row of zeros and is not
      `readable`.

    Raises:
      ValueError: no paths, or size is no multiple of patch.
    """
    if not paths:
        raise ValueError("there are no images to embed")
    if size % patch:
        raise ValueError(f"size = {size} must be a multiple of patch = {patch}")
    rows, readable = [], []
    with ThreadPoolExecutor(_THREADS) as threads:
        for start in range(0, len(paths), batch_size):
            part = paths[start : start + batch_size]
            views = list(threads.map(lambda path: _view(path, size), part))
            known = np.array([view is not None for view in views])
            batch = _batch(views, start, size, patch, batch_size)
            found = np.asarray(embed(batch), np.float32)[: len(part)]
            rows.append(np.where(known[:, None], found, np.float32(0)))
            readable.append(known)
    return Features(np.concatenate(rows), np.concatenate(readable))


def _view(path: str | Path, size: int) -> np.ndarray | None:
    try:
        return read_image(path, size)
    except MediaError:
        return None


def _batch(
    views: list[np.ndarray | None], first: int, size: int, patch: int, batch_size: int
) -> dict[str, np.ndarray]:
    """A batch as a loader gives it; rows without a view are zeros of weight 0."""
    tokens = (size // patch) ** 2
    batch = {
        "patches": np.zeros((batch_size, tokens, patch * patch * 3), np.uint8),
        "positions": np.zeros((batch_size, tokens, 3), np.int32),
        "length": np.zeros(batch_size, np.int32),
        "weight": np.zeros(batch_size, np.float32),
        "index": np.full(batch_size, -1, np.int64),
    }
    for row, view in enumerate(views):
        batch["index"][row] = first + row
        if view is not None:
            sequence = image_sequence(view, patch)
            batch["patches"][row], batch["positions"][row] = sequence.flat(), sequence.positions
            batch["length"][row], batch["weight"][row] = tokens, 1
    return batch
