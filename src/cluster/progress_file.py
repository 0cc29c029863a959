"""A clustering under way, on disk: what a killed one goes on from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from ..files import write_atomic

_HASHED_ROWS = 2**16  # at once


class Progress(NamedTuple):
    """State after some updates.

    Attributes:
      update: number of updates done.
      centres_KD: float32.
      counts_K: float64, rows that mini-batch k-means has averaged into each centre.
      inertia: one value per update.
    """

    update: int
    centres_KD: np.ndarray
    counts_K: np.ndarray
    inertia: list[float]


class ProgressFile:
    """Saves and finds the state of one clustering.

    Args:
      path: the file; None keeps nothing.
      options: JSON values that make the clustering what it is.
      features_ND: its rows, all of which are compared, by their hash.
    """

    def __init__(self, path: Path | None, options: dict[str, Any], features_ND: np.ndarray) -> None:
        self._path = path
        self._identity = {} if path is None else {**options, "rows": fingerprint(features_ND)}

    def load(self) -> Progress | None:
        """What an earlier run has left; None where there is nothing.

        Raises:
          ValueError: the file is damaged, or belongs to a clustering with other options or rows.
        """
        if self._path is None or not self._path.is_file():
            return None
        try:
            with safetensors.safe_open(self._path, framework="numpy") as file:
                meta = json.loads((file.metadata() or {})["progress"])
                centres_KD, counts_K = file.get_tensor("centres"), file.get_tensor("counts")
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{self._path} is damaged ({error}): delete it to start again"
            ) from error
        had = meta["identity"]
        differs = [key for key, value in self._identity.items() if had.get(key) != value]
        if differs:
            raise ValueError(
                f"{self._path} was left by a clustering with another {', '.join(differs)}: delete "
                "it, or give the same options and features to go on"
            )
        return Progress(meta["update"], centres_KD, counts_K, meta["inertia"])

    def save(self, progress: Progress) -> None:
        if self._path is None:
            return
        text = json.dumps(
            {"identity": self._identity, "update": progress.update, "inertia": progress.inertia}
        )
        tensors = {"centres": progress.centres_KD, "counts": progress.counts_K}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path, safetensors.numpy.save(tensors, metadata={"progress": text}))


def fingerprint(features_ND: np.ndarray) -> str:
    """Hex hash of a matrix, also memory-mapped: equal hashes, equal numbers."""
    digest = hashlib.sha256(str((features_ND.shape, features_ND.dtype)).encode())
    for start in range(0, len(features_ND), _HASHED_ROWS):
        digest.update(np.ascontiguousarray(features_ND[start : start + _HASHED_ROWS]).data)
    return digest.hexdigest()
