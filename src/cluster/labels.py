"""Centres -> labels of a record set, the file of the centres, and how well two labelings agree.

Shapes: N records, D features, K centres, n labels per record.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh

from ..data.labels import load_labels
from ..data.records import RecordSet
from ..files import write_atomic
from .features import Features
from .nearest import nearest_centres

CENTRES_VERSION = 1
SHUFFLES = 5


class Centres(NamedTuple):
    """Class centres and where they come from.

    Attributes:
      centres_KD: float32 unit rows.
      meta: JSON values: `features` ("descriptor" or "encoder"), seed, inertia, ...
    """

    centres_KD: np.ndarray
    meta: dict[str, Any]

    @property
    def digest(self) -> str:
        """Hex sha256 of the numbers: label files with an equal one share their classes."""
        return hashlib.sha256(np.ascontiguousarray(self.centres_KD, "<f4").tobytes()).hexdigest()


def assign(
    features: Features, centres_KD: np.ndarray, n: int, mesh: Mesh | None = None
) -> np.ndarray:
    """The n nearest centres of each record, found by all devices of the mesh.

    Returns:
      int32 [N, n], nearest first; -1 for a record that could not be read.
    """
    readable_N = features.readable_N
    if readable_N.all():  # a memory-mapped file is not copied
        return nearest_centres(features.rows_ND, centres_KD, n, mesh=mesh)
    labels_Nn = np.full((len(features.rows_ND), n), -1, np.int32)
    labels_Nn[readable_N] = nearest_centres(features.rows_ND[readable_N], centres_KD, n, mesh=mesh)
    return labels_Nn


def centres_path(record_set: RecordSet, name: str) -> Path:
    """Where the centres of labels/NAME.npy lie."""
    return record_set.path / "labels" / f"{name}.centres.safetensors"


def save_centres(path: Path, centres: Centres) -> None:
    """Writes centres and their description as one safetensors file."""
    text = json.dumps({**centres.meta, "version": CENTRES_VERSION}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"centres": np.ascontiguousarray(centres.centres_KD, np.float32)}
    write_atomic(path, safetensors.numpy.save(tensors, metadata={"centres": text}))


def load_centres(path: str | Path) -> Centres:
    """Reads what `save_centres` wrote.

    Raises:
      ValueError: the file is missing, damaged, or of a version that this program does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"no centres at {path}: `codecvit cluster` writes labels/NAME.centres.safetensors"
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            meta = json.loads((file.metadata() or {})["centres"])
            centres_KD = file.get_tensor("centres")
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no centres: {error}") from error
    if meta["version"] != CENTRES_VERSION:
        raise ValueError(
            f"{path} has version {meta['version']!r}, this program reads {CENTRES_VERSION}: "
            "cluster again"
        )
    return Centres(centres_KD, meta)


def check_free(record_set: RecordSet, name: str) -> None:
    """Refuses a name that would overwrite labels which no clustering made.

    Raises:
      ValueError: the set has labels of that name that came with the data.
    """
    path = record_set.path / "labels" / f"{name}.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("origin") != "clusters":
        raise ValueError(
            f"--name {name}: {path.with_suffix('.npy')} holds given labels, which would be lost; "
            "choose another name"
        )


class Agreement(NamedTuple):
    """Normalised mutual information of two labelings, and what is left of it by chance.

    Attributes:
      nmi: in 0..1.
      shuffled: its mean after one labeling was shuffled; it rises with the number of clusters.
    """

    nmi: float
    shuffled: float


def agreement(record_set: RecordSet, labels_Nn: np.ndarray) -> dict[str, Agreement]:
    """How well the nearest centres of a record set agree with each given label column."""
    found = {}
    for name in record_set.manifest["label_columns"]:
        given_N = load_labels(record_set, name).values[:, 0]
        both_N = (given_N >= 0) & (labels_Nn[:, 0] >= 0)
        ours_N, given_N = labels_Nn[both_N, 0], given_N[both_N]
        generator = np.random.default_rng(0)
        shuffled = [
            normalised_mutual_information(generator.permutation(ours_N), given_N)
            for _ in range(SHUFFLES)
        ]
        nmi = normalised_mutual_information(ours_N, given_N)
        found[name] = Agreement(nmi, float(np.mean(shuffled)))
    return found


def normalised_mutual_information(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Mutual information of two labelings over the mean of their entropies.

    Independent labelings have 0, labelings equal up to the names 1. It rises with the number of
    clusters even by chance, so compare it at equal K. The mean of the entropies is the arithmetic
    one, as in scikit-learn (Strehl & Ghosh 2002 take the geometric one).

    Args:
      a_N: integers; -1 = no label.
      b_N: likewise. Rows that lack either label are left out.

    Returns:
      A number in 0..1; 0 where no row has both labels or either labeling knows one class alone.
    """
    both_N = (a_N >= 0) & (b_N >= 0)
    total = int(both_N.sum())
    if total == 0:
        return 0.0
    _, a_N = np.unique(a_N[both_N], return_inverse=True)
    _, b_N = np.unique(b_N[both_N], return_inverse=True)
    pairs, count = np.unique(a_N * (b_N.max() + 1) + b_N, return_counts=True)
    joint, p_a, p_b = count / total, np.bincount(a_N) / total, np.bincount(b_N) / total
    independent = p_a[pairs // len(p_b)] * p_b[pairs % len(p_b)]
    information = float(np.sum(joint * np.log(joint / independent)))
    entropies = -float(np.sum(p_a * np.log(p_a)) + np.sum(p_b * np.log(p_b)))
    if len(p_a) == 1 or len(p_b) == 1:
        return 0.0
    return max(0.0, information / (entropies / 2))
