"""Features of texts, through whatever function embeds a batch of them.

Batches have one size, so that a compiled function is compiled once; what fills up the last one is
cut off again.

Shapes: N texts, D features, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

EmbedTexts = Callable[[list[str]], np.ndarray]  # always B texts -> float [B, D]


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
