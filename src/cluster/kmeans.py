"""Spherical k-means, sharded over the rows, in blocks where they are many.

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
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .blocks import RowBlocks
from .nearest import chunk_rows, cosines, first_device, unit_rows
from .progress_file import Progress, ProgressFile, fingerprint

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
    batch_rows: int = 0,
    chunk: int | None = None,
    block_rows: int | None = None,
    mesh: Mesh | None = None,
    progress: Path | None = None,
) -> KMeansResult:
    """Clusters the directions of the rows: seeding, then Lloyd's iterations until nothing changes.

    Seeding is greedy k-means++ (Arthur & Vassilvitskii 2007, of 2 + ln k candidates the one that
    lowers the inertia most), on a seeded sample of the rows when there are many; it costs k passes,
    so `random` (k distinct rows, what faiss does) is the choice for hundreds of thousands of
    centres. An empty cluster takes the row that lies farthest from its centre, which can only lower
    the inertia.

    With `batch_rows` the centres move after each random batch of so many rows instead, each by its
    own count of rows so far (mini-batch k-means, Sculley 2010): fewer passes over many rows, for a
    somewhat higher inertia. A centre that no row comes to stays where it is.

    Args:
      features_ND: finite float rows, also memory-mapped; they are scaled to unit length here, and
        pass through the devices in blocks where they are many.
      k: number of centres, at most N.
      seed: of the seeding and of the batches; the same seed and features give the same centres.
      iterations: updates at most, or passes of mini-batch k-means; the published recipe makes 20.
      init: "k-means++", "random", or the first centres [K, D].
      batch_rows: rows of a mini-batch; 0 makes Lloyd's iterations.
      chunk: rows per device whose [C, K] cosines are held at once; by default chosen from k.
      block_rows: rows on the devices at once; by default chosen from D.
      mesh: its devices share the rows; the first device alone when None. The centres do not depend
        on it beyond the rounding of sums.
      progress: a file that is written after each update; a killed clustering that is called again
        goes on from it, on as many devices to the same centres bit by bit. It stays: remove it
        once the result is safe.

    Returns:
      A KMeansResult.

    Raises:
      ValueError: k or iterations out of range, an unknown init, features that are not finite
        [N, D], or a progress file of another clustering or of more updates than asked for.
    """
    if features_ND.ndim != 2:
        raise ValueError(f"features have shape {features_ND.shape}; give [rows, features]")
    total = len(features_ND)
    if not 1 <= k <= total:
        raise ValueError(f"k={k}: k-means needs 1 <= k <= the number of rows, which is {total}")
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: at least one update is needed")
    mesh = mesh or first_device()
    blocks = RowBlocks(features_ND, mesh, chunk or chunk_rows(k), batch_rows or block_rows)
    kind = init if isinstance(init, str) else fingerprint(init)
    options = {"k": k, "seed": seed, "init": kind, "batch_rows": batch_rows}
    file = ProgressFile(progress, options, features_ND)
    done = file.load()
    if done is None:
        centres_KD = _first_centres(blocks, k, init, seed)
        done = Progress(0, centres_KD, np.zeros(k), [])
    if done.update > iterations:
        raise ValueError(
            f"iterations={iterations}: {progress} already holds {done.update} updates: ask for at "
            "least so many, or delete it to start again"
        )
    with jax.set_mesh(mesh):  # also where the caller has set another one
        if batch_rows:
            done = _mini_batches(blocks, done, iterations, seed, mesh, file)
            iterations = done.update  # what is left is to measure
        return _lloyd(blocks, done, iterations, mesh, file)


def _lloyd(
    blocks: RowBlocks, done: Progress, iterations: int, mesh: Mesh, file: ProgressFile
) -> KMeansResult:
    """Lloyd's iterations: assign each row, then move each centre to the direction of its rows."""
    centres_KD, inertia = done.centres_KD, list(done.inertia)
    nearest_N = np.empty(len(blocks), np.int32)
    distance_N = np.empty(len(blocks), np.float32)
    for update in range(done.update, iterations + 1):
        sums_KD, counts_K = np.zeros(centres_KD.shape), np.zeros(len(centres_KD), np.int64)
        cost = 0.0
        placed_KD = jax.device_put(centres_KD, NamedSharding(mesh, PartitionSpec()))  # once a pass
        for block in blocks:
            out = _assign(block.rows_RD, block.weight_R, placed_KD, mesh=mesh, chunk=blocks.chunk)
            count = len(nearest_N[block.index])
            nearest_N[block.index] = np.asarray(out["nearest_N"])[:count]
            distance_N[block.index] = np.asarray(out["distance_N"])[:count]
            sums_KD += np.asarray(out["sums_KD"])
            counts_K += np.asarray(out["counts_K"])
            cost += float(out["inertia"])
        inertia.append(cost)
        if update == iterations:
            break
        sums_KD = sums_KD.astype(np.float32)
        if (counts_K == 0).any():
            _repair(blocks, nearest_N, distance_N, sums_KD, counts_K.copy())
        moved_KD = _directions(sums_KD, otherwise=centres_KD)
        if np.array_equal(moved_KD, centres_KD):  # no row has changed its centre
            break
        centres_KD = moved_KD
        file.save(Progress(update + 1, centres_KD, done.counts_K, inertia))
    return KMeansResult(centres_KD, inertia, counts_K)


def _mini_batches(
    blocks: RowBlocks, done: Progress, passes: int, seed: int, mesh: Mesh, file: ProgressFile
) -> Progress:
    """Passes over all rows in random batches, each of which moves the centres."""
    for number in range(done.update, passes):
        _, centres_KD, counts_K, inertia = done
        counts_K, cost = counts_K.copy(), 0.0
        for block in blocks.shuffled(np.random.default_rng([seed, number])):
            out = _assign(block.rows_RD, block.weight_R, centres_KD, mesh=mesh, chunk=blocks.chunk)
            # Each centre is the mean of all rows that it was nearest to so far.
            sums_KD = counts_K[:, None] * centres_KD + np.asarray(out["sums_KD"])
            centres_KD = _directions(sums_KD.astype(np.float32), otherwise=centres_KD)
            counts_K += np.asarray(out["counts_K"])
            cost += float(out["inertia"])
        done = Progress(number + 1, centres_KD, counts_K, [*inertia, cost])
        file.save(done)
    return done


@functools.partial(jax.jit, static_argnames=("mesh", "chunk"))
def _assign(
    rows_ND: jax.Array,
    weight_N: jax.Array,
    centres_KD: jax.Array,
    *,
    mesh: Mesh,
    chunk: int,
) -> dict[str, jax.Array]:
    """The nearest centre of each row, and the sums that the next centres are made of."""
    axes = mesh.axis_names
    split, whole = PartitionSpec(axes), PartitionSpec()

    def local(
        rows_ND: jax.Array, weight_N: jax.Array, centres_KD: jax.Array
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
        totals = {
            "sums_KD": sums_KD,
            "counts_K": counts_K,
            "inertia": jnp.sum(jnp.sum(distance, axis=1)),
        }
        per_row = {"nearest_N": nearest_N, "distance_N": distance.reshape(-1)}
        return jax.lax.psum(totals, axes) | per_row

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(split, split, whole),
        out_specs={
            "sums_KD": whole,
            "counts_K": whole,
            "inertia": whole,
            "nearest_N": split,
            "distance_N": split,
        },
    )(rows_ND, weight_N, centres_KD)


def _repair(
    blocks: RowBlocks,
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
        (x_D,) = blocks.take(np.array([row]))
        sums_KD[donor] -= x_D
        counts_K[donor] -= 1
        sums_KD[empty] = x_D
        counts_K[empty] = 1


def _directions(sums_KD: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Unit centres; a centre whose rows cancel out has no direction and stays where it was."""
    norm_K1 = np.linalg.norm(sums_KD, axis=1, keepdims=True)
    return np.where(norm_K1 > 1e-6, sums_KD / np.maximum(norm_K1, 1e-6), otherwise)


def _first_centres(blocks: RowBlocks, k: int, init: str | np.ndarray, seed: int) -> np.ndarray:
    """The centres that Lloyd's iterations start from [K, D]."""
    if isinstance(init, np.ndarray):
        if init.shape != (k, blocks.width):
            raise ValueError(f"init has shape {init.shape}; give {(k, blocks.width)}")
        return unit_rows(init)
    generator = np.random.default_rng(seed)
    if init == "random":
        # In the order of the file, which is read once.
        return blocks.take(np.sort(generator.choice(len(blocks), k, replace=False)))
    if init != "k-means++":
        raise ValueError(f"init={init!r}: choose 'k-means++', 'random' or an array [K, D]")
    sample = max(SEEDING_ROWS_AT_LEAST, SEEDING_ROWS_PER_CENTRE * k)
    rows = np.arange(len(blocks))
    if len(rows) > sample:
        rows = np.sort(generator.choice(len(rows), sample, replace=False))
    x_SD = blocks.take(rows)
    return np.asarray(_plus_plus(x_SD, jax.random.key(seed), k=k, trials=2 + int(math.log(k))))


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
