"""Retrieval between images and captions: recall at 1, 5 and 10, both ways.

Shapes: N images, M captions, D features.
"""

from __future__ import annotations

import numpy as np
from jax.sharding import Mesh

from .labelled import Metrics
from .ranks import UNRANKED, group_ranks

RECALLS = (1, 5, 10)


def image_text_retrieval(
    image_ND: np.ndarray,
    text_MD: np.ndarray,
    image_of_M: np.ndarray,
    *,
    readable_N: np.ndarray | None = None,
    chunk: int = 8192,
    mesh: Mesh | None = None,
) -> Metrics:
    """Recall of captions by images and of images by captions, by cosine.

    An image finds its captions at k if one of them is among the k nearest captions; a caption finds
    its image if that is among the k nearest images. What is as near as the right one counts as
    nearer, so embeddings that are all the same find nothing; an image's own captions are never in
    each other's way.

    Args:
      image_ND: embeddings of the images, of any length. One without a caption is a candidate only.
      text_MD: embeddings of the captions, of any length.
      image_of_M: integers in [0, N), the image of each caption; -1 for a row that does not count
        (padding).
      readable_N: false for an image that could not be read: it and its captions find nothing,
        and count. All are read by default; a row of padding is one that is not readable and has no
        caption.
      chunk: candidates that are compared at a time.
      mesh: its devices share the queries; the first device alone when None.

    Returns:
      "image_to_text_r1", "..._r5", "..._r10" (shares of the images that have a caption),
      "text_to_image_r1", ... (shares of the captions), "images" and "captions" (their numbers),
      "unreadable" (images among them that could not be read).

    Raises:
      ValueError: shapes that don't fit, a number out of range, no caption, embeddings that are not
        finite.
    """
    image_of_M = np.asarray(image_of_M)
    if image_of_M.shape != (len(text_MD),) or not np.issubdtype(image_of_M.dtype, np.integer):
        raise ValueError(
            f"image_of_M is {image_of_M.dtype} {list(image_of_M.shape)}: give one integer for each "
            f"of the {len(text_MD)} captions"
        )
    if len(image_of_M) and not -1 <= image_of_M.min() <= image_of_M.max() < len(image_ND):
        raise ValueError(
            f"image_of_M runs from {image_of_M.min()} to {image_of_M.max()}, but there are "
            f"{len(image_ND)} images"
        )
    counts_M = image_of_M >= 0
    if not counts_M.any():
        raise ValueError(f"none of the {len(text_MD)} captions belongs to an image")
    asked_N = np.zeros(len(image_ND), bool)
    asked_N[image_of_M[counts_M]] = True
    readable_N = np.ones(len(image_ND), bool) if readable_N is None else readable_N

    images = np.where(readable_N[:, None], image_ND, np.float32(0))
    texts = np.where(counts_M[:, None], text_MD, np.float32(0))
    numbers_N = np.where(readable_N, np.arange(len(image_ND)), -1)
    # The captions of an unreadable image stay in the way of other images.
    to_text_N = group_ranks(images, numbers_N, texts, image_of_M, chunk=chunk, mesh=mesh)
    to_image_M = group_ranks(texts, image_of_M, images, numbers_N, chunk=chunk, mesh=mesh)
    assert (to_text_N[~readable_N] == UNRANKED).all()
    return (
        {f"image_to_text_r{k}": float(np.mean(to_text_N[asked_N] < k)) for k in RECALLS}
        | {f"text_to_image_r{k}": float(np.mean(to_image_M[counts_M] < k)) for k in RECALLS}
        | {
            "images": int(asked_N.sum()),
            "captions": int(counts_M.sum()),
            "unreadable": int((~readable_N[asked_N]).sum()),
        }
    )
