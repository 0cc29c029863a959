"""Spherical k-means, sharded over the rows.

Rows and centres live on the unit sphere, where the squared Euclidean distance is 2 - 2 cos: the
nearest centre is the one of the largest cosine (Dhillon & Modha 2001, "Concept decompositions for
large sparse text data"). The published labels rank centres by cosine as well, so the clusters and
the labels minimise one and the same distance.

Shapes: N rows, D features, K centres, C rows of one chunk, S rows that the seeding sees, T trials
per seed, n nearest.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .nearest import chunk_rows, cosines, unit_rows

# Seeding makes K passes over its rows; a sample of this many rows per centre is as good
# as all of them.
SEEDING_ROWS_PER_CENTRE = 64
SEEDING_ROWS_AT_LEAST = 65_536


@dataclass(frozen=True)
class KMeansResult:
    """What k-means found.

    Attributes:
      centres_KD: float32 unit rows.
      inertia: sum of squared distances to the nearest centre, before each update and after the
        last.
      counts_K: int64, rows nearest to each centre; 0 only where there are fewer distinct rows than
        centres, or where the last update emptied a cluster.
    """

    centres_KD: np.ndarray
    inertia: list[float]
    counts_K: np.ndarray


def kmeans(
    features_ND: np.ndarray,
    k: int,
    *,
    seed: int,
    iterations: int = 20,
    init: str | np.ndarray = "k-means++",
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> KMeansResult:
    """Clusters the directions of the rows: seeding, then Lloyd's iterations until nothing changes.

    Seeding is greedy k-means++ (Arthur & Vassilvitskii 2007, of 2 + ln k candidates the one that
    lowers the inertia most), on a seeded sample of the rows when there are many; it costs k passes,
    so `random` (k distinct rows, what faiss does) is the choice for hundreds of thousands of
    centres. An empty cluster takes the row that lies farthest from its centre, which can only lower
    the inertia.

    Args:
      features_ND: finite float rows; they are scaled to unit length here. All of them must fit the
        mesh's memory.
      k: number of centres, at most N.
      seed: of the seeding; the same seed and features give the same centres.
      iterations: updates at most; the published recipe makes 20.
      init: "k-means++", "random", or the first centres [K, D].
      chunk: rows per device whose [C, K] cosines are held at once; by default chosen from k.
      mesh: its devices share the rows; the first device alone when None. The centres do not depend
        on it beyond the rounding of sums.

    Returns:
      A KMeansResult.

    Raises:
      ValueError: k or iterations out of range, an unknown init, features that are not finite
        [N, D].
    """
    x_ND = unit_rows(features_ND)
    if not 1 <= k <= len(x_ND):
        raise ValueError(f"k={k}: k-means needs 1 <= k <= the number of rows, which is {len(x_ND)}")
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: at least one update is needed")
    centres_KD = _first_centres(x_ND, k, init, seed)

    mesh = mesh or jax.make_mesh(
        (1,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1]
    )
    with jax.set_mesh(mesh):  # also where the caller has set another one
        return _lloyd(x_ND, centres_KD, iterations, chunk or chunk_rows(k), mesh)


def _lloyd(
    x_ND: np.ndarray, centres_KD: np.ndarray, iterations: int, chunk: int, mesh: Mesh
) -> KMeansResult:
    """Lloyd's iterations: assign each row, then move each centre to the direction of its rows."""
    local_rows = math.ceil(len(x_ND) / mesh.size)
    chunk = math.ceil(local_rows / math.ceil(local_rows / chunk))  # even chunks: little padding
    padding = (-len(x_ND)) % (mesh.size * chunk)
    over_rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    rows = jax.device_put(np.pad(x_ND, ((0, padding), (0, 0))), over_rows)
    weight = jax.device_put(np.pad(np.ones(len(x_ND), np.float32), (0, padding)), over_rows)
    nearest = jax.device_put(np.full(len(x_ND) + padding, -1, np.int32), over_rows)

    inertia: list[float] = []
    for update in range(iterations + 1):
        out = _assign(rows, weight, nearest, centres_KD, mesh=mesh, chunk=chunk)
        nearest = out["nearest_N"]
        counts_K = np.asarray(out["counts_K"]).astype(np.int64)
        inertia.append(float(out["inertia"]))
        settled = int(out["changed"]) == 0
        if update == iterations or settled:
            break
        sums_KD = np.array(out["sums_KD"])
        if (counts_K == 0).any():
            distance_N = np.asarray(out["distance_N"])[: len(x_ND)]
            _repair(x_ND, np.asarray(nearest)[: len(x_ND)], distance_N, sums_KD, counts_K)
        centres_KD = _directions(sums_KD, otherwise=centres_KD)
    return KMeansResult(centres_KD, inertia, counts_K)


@functools.partial(jax.jit, static_argnames=("mesh", "chunk"))
def _assign(
    rows_ND: jax.Array,
    weight_N: jax.Array,
    before_N: jax.Array,
    centres_KD: jax.Array,
    *,
    mesh: Mesh,
    chunk: int,
) -> dict[str, jax.Array]:
    """The nearest centre of each row, and the sums that the next centres are made of."""
    axes = mesh.axis_names
    split, whole = PartitionSpec(axes), PartitionSpec()

    def local(
        rows_ND: jax.Array, weight_N: jax.Array, before_N: jax.Array, centres_KD: jax.Array
    ) -> dict[str, jax.Array]:
        def one_chunk(
            carry: tuple[jax.Array, jax.Array], part: tuple[jax.Array, jax.Array]
        ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
            sums_KD, counts_K = carry
            x_CD, w_C = part
            cos_CK = cosines(x_CD, centres_KD)
            nearest_C = jnp.argmax(cos_CK, axis=1).astype(jnp.int32)  # ties: the lowest index
            distance_C = w_C * jnp.maximum(2 - 2 * jnp.max(cos_CK, axis=1), 0)
            sums_KD = sums_KD.at[nearest_C].add(w_C[:, None] * x_CD)
            return (sums_KD, counts_K.at[nearest_C].add(w_C.astype(jnp.int32))), (
                nearest_C,
                distance_C,
            )

        empty = (jnp.zeros_like(centres_KD), jnp.zeros(len(centres_KD), jnp.int32))
        (sums_KD, counts_K), (nearest, distance) = jax.lax.scan(
            one_chunk,
            jax.lax.pcast(empty, axes, to="varying"),
            (
                rows_ND.reshape(-1, chunk, rows_ND.shape[1]),
                weight_N.reshape(-1, chunk),
            ),
        )
        nearest_N = nearest.reshape(-1)
        changed = jnp.sum((nearest_N != before_N) & (weight_N > 0))
        totals = {
            "sums_KD": sums_KD,
            "counts_K": counts_K,
            "inertia": jnp.sum(jnp.sum(distance, axis=1)),
            "changed": changed,
        }
        per_row = {"nearest_N": nearest_N, "distance_N": distance.reshape(-1)}
        return jax.lax.psum(totals, axes) | per_row

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(split, split, split, whole),
        out_specs={
            "sums_KD": whole,
            "counts_K": whole,
            "inertia": whole,
            "changed": whole,
            "nearest_N": split,
            "distance_N": split,
        },
    )(rows_ND, weight_N, before_N, centres_KD)


def _repair(
    x_ND: np.ndarray,
    nearest_N: np.ndarray,
    distance_N: np.ndarray,
    sums_KD: np.ndarray,
    counts_K: np.ndarray,
) -> None:
    """Moves one row into each empty cluster, in place.

    The farthest rows go first, never the last row of a cluster.
    """
    farthest_first = iter(np.argsort(-distance_N, kind="stable"))
    for empty in np.flatnonzero(counts_K == 0):
        # There is such a row: N >= K, so while a cluster is empty another one holds two rows not
        # yet passed.
        row = next(row for row in farthest_first if counts_K[nearest_N[row]] > 1)
        donor = nearest_N[row]
        sums_KD[donor] -= x_ND[row]
        counts_K[donor] -= 1
        sums_KD[empty] = x_ND[row]
        counts_K[empty] = 1


def _directions(sums_KD: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Unit centres; a centre whose rows cancel out has no direction and stays where it was."""
    norm_K1 = np.linalg.norm(sums_KD, axis=1, keepdims=True)
    return np.where(norm_K1 > 1e-6, sums_KD / np.maximum(norm_K1, 1e-6), otherwise)


def _first_centres(x_ND: np.ndarray, k: int, init: str | np.ndarray, seed: int) -> np.ndarray:
    """The centres that Lloyd's iterations start from [K, D]."""
    if isinstance(init, np.ndarray):
        if init.shape != (k, x_ND.shape[1]):
            raise ValueError(f"init has shape {init.shape}; give {(k, x_ND.shape[1])}")
        return unit_rows(init)
    generator = np.random.default_rng(seed)
    if init == "random":
        return x_ND[generator.choice(len(x_ND), k, replace=False)]
    if init != "k-means++":
        raise ValueError(f"init={init!r}: choose 'k-means++', 'random' or an array [K, D]")
    sample = max(SEEDING_ROWS_AT_LEAST, SEEDING_ROWS_PER_CENTRE * k)
    if len(x_ND) > sample:
        x_ND = x_ND[np.sort(generator.choice(len(x_ND), sample, replace=False))]
    return np.asarray(_plus_plus(x_ND, jax.random.key(seed), k=k, trials=2 + int(math.log(k))))


@functools.partial(jax.jit, static_argnames=("k", "trials"))
def _plus_plus(x_SD: jax.Array, key: jax.Array, *, k: int, trials: int) -> jax.Array:
    """Greedy k-means++: each seed is the best of some rows, drawn by their squared distance.

    It runs on one device, so that the seeds are the same on every mesh.
    """

    def distances(seeds_TD: jax.Array) -> jax.Array:
        return jnp.maximum(2 - 2 * cosines(seeds_TD, x_SD), 0)

    def add(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        seeds_KD, distance_S = state
        cumulative_S = jnp.cumsum(distance_S)
        draws_T = jax.random.uniform(jax.random.fold_in(key, i), (trials,)) * cumulative_S[-1]
        rows_T = jnp.searchsorted(cumulative_S, draws_T, side="right")
        candidates_TD = x_SD[jnp.minimum(rows_T, len(x_SD) - 1)]
        distance_TS = jnp.minimum(distance_S, distances(candidates_TD))
        best = jnp.argmin(distance_TS.sum(axis=1))
        return seeds_KD.at[i].set(candidates_TD[best]), distance_TS[best]

    first = x_SD[jax.random.randint(key, (), 0, len(x_SD))]
    seeds_KD = jnp.zeros((k, x_SD.shape[1]), jnp.float32).at[0].set(first)
    return jax.lax.fori_loop(1, k, add, (seeds_KD, distances(first[None])[0]))[0]
