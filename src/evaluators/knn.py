"""k-nearest-neighbour classification of frozen embeddings.

Shapes: N training rows, M test rows, D features, C rows of one chunk, k neighbours, Y classes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .labelled import Metrics, labelled_rows, ranks_to_metrics

# Cosines held at once: 2^24 float32 are 64 MiB.
CHUNK_ELEMENTS = 2**24
UNRANKED = np.iinfo(np.int32).max


def knn(
    train_ND: np.ndarray,
    train_labels_N: np.ndarray,
    test_MD: np.ndarray,
    test_labels_M: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int,
    chunk: int | None = None,
) -> Metrics:
    """Accuracy of the weighted vote of the k nearest training rows.

    The protocol of Wu et al. 2018 ("Unsupervised feature learning via non-parametric instance
    discrimination", section 3.4) with the k that DINO (Caron et al. 2021) found best: a neighbour
    of cosine s votes for its class with weight exp(s / temperature). Classes that got no vote are
    never right; equal votes go to the lower class.

    Args:
      train_ND: the rows that vote, of any length: they are scaled to unit length here.
      train_labels_N: integers in [0, num_classes); rows of label -1 are left out.
      test_MD: the rows to classify.
      test_labels_M: their labels; rows of label -1 are left out.
      k: neighbours; with fewer training rows all of them vote, and "k" in the result says how many
        did.
      temperature: of the votes' weights.
      num_classes: number of classes.
      chunk: test rows whose cosines [C, N] are held at once; by default chosen from N.

    Returns:
      "top1" and "top5" (shares of the test rows), "count" and "train_count" (labelled rows), "k".

    Raises:
      ValueError: k or temperature not positive, rows and labels that do not fit, no labelled row.
    """
    if k < 1:
        raise ValueError(f"k={k}: at least one neighbour must vote")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: give a positive one, 0.07 is usual")
    train_ND, train_labels_N = labelled_rows("train", train_ND, train_labels_N, num_classes)
    test_MD, test_labels_M = labelled_rows("test", test_MD, test_labels_M, num_classes)
    if train_ND.shape[1] != test_MD.shape[1]:
        raise ValueError(f"train has {train_ND.shape[1]} features and test {test_MD.shape[1]}")
    k = min(k, len(train_ND))
    chunk = min(chunk or max(1, CHUNK_ELEMENTS // len(train_ND)), len(test_MD))
    train_ND, train_labels_N = jax.device_put((train_ND, train_labels_N))
    ranks = []
    for start in range(0, len(test_MD), chunk):
        part = slice(start, start + chunk)
        missing = max(0, start + chunk - len(test_MD))  # one shape, one compilation
        rank_C = _true_class_ranks(
            train_ND,
            train_labels_N,
            np.pad(test_MD[part], ((0, missing), (0, 0))),
            np.pad(test_labels_M[part], (0, missing)),
            temperature,
            k=k,
            num_classes=num_classes,
        )
        ranks.append(np.asarray(rank_C)[: chunk - missing])
    return ranks_to_metrics(np.concatenate(ranks)) | {"train_count": len(train_ND), "k": k}


@functools.partial(jax.jit, static_argnames=("k", "num_classes"))
def _true_class_ranks(
    train_ND: jax.Array,
    train_labels_N: jax.Array,
    test_CD: jax.Array,
    test_labels_C: jax.Array,
    temperature: float,
    *,
    k: int,
    num_classes: int,
) -> jax.Array:
    """How many classes got more of the vote than the true one [C]; UNRANKED if that got none."""
    cos_CN = jnp.matmul(_unit(test_CD), _unit(train_ND).T, precision=jax.lax.Precision.HIGHEST)
    cos_Ck, neighbour_Ck = jax.lax.top_k(cos_CN, k)
    # Relative to the best neighbour, so that a small temperature does not overflow. Its cosine is
    # taken by max, not as cos_Ck[:, :1]: for a slice of top_k XLA on CPU sorts whole rows, slowly.
    best_C1 = jnp.max(cos_Ck, axis=1, keepdims=True)
    weight_Ck = jnp.exp((cos_Ck - best_C1) / temperature)
    classes_Ck = train_labels_N[neighbour_Ck]
    row_C1 = jnp.arange(len(test_CD))[:, None]
    votes_CY = jnp.zeros((len(test_CD), num_classes)).at[row_C1, classes_Ck].add(weight_Ck)
    true_C1 = jnp.take_along_axis(votes_CY, test_labels_C[:, None], axis=1)
    lower_class_CY = jnp.arange(num_classes) < test_labels_C[:, None]
    ahead_CY = (votes_CY > true_C1) | ((votes_CY == true_C1) & lower_class_CY)
    voted_C = jnp.any(classes_Ck == test_labels_C[:, None], axis=1)
    return jnp.where(voted_C, jnp.sum(ahead_CY, axis=1), UNRANKED)


def _unit(x_ND: jax.Array) -> jax.Array:
    norm_N1 = jnp.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND / jnp.maximum(norm_N1, jnp.finfo(jnp.float32).tiny)
