"""How many candidates are in the way of the right one: what zero-shot and retrieval metrics count.

Shapes: N queries, M candidates, D features, C queries of one device and step, c candidates of one
  piece, p pieces.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..cluster.nearest import first_device, unit_rows

NO_GROUP = -1
UNRANKED = np.iinfo(np.int32).max
# Cosines that a device holds at once: 2^23 float32 are 32 MiB.
_QUERIES = 1024
_CANDIDATES = 8192


def group_ranks(
    queries_ND: np.ndarray,
    query_groups_N: np.ndarray,
    candidates_MD: np.ndarray,
    candidate_groups_M: np.ndarray,
    *,
    chunk: int = _CANDIDATES,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Per query, how many candidates of other groups are as near as the nearest of its own.

    Near means a large cosine; nearer ones count, too. **A tie counts against the query**: an
    encoder that gives all inputs the same embedding finds nothing. (With ties for the query, or
    broken by position, it would be right wherever the right candidate comes first.)

    Args:
      queries_ND: float rows of any length.
      query_groups_N: the group whose candidates are right for a query; -1 for no query (padding).
      candidates_MD: float rows of any length.
      candidate_groups_M: group of each candidate; -1 for no candidate (padding).
      chunk: candidates that are compared at a time.
      mesh: its devices share the queries, each with all candidates; the first device alone when
        None. The result does not depend on it.

    Returns:
      int32 [N]; 0 means that the nearest of all candidates is right. UNRANKED where a query has no
      group, or its group no candidate.

    Raises:
      ValueError: rows that are not finite, arrays that don't fit each other, chunk < 1.
    """
    queries_ND, candidates_MD = unit_rows(queries_ND), unit_rows(candidates_MD)
    if queries_ND.shape[1] != candidates_MD.shape[1]:
        raise ValueError(
            f"queries have {queries_ND.shape[1]} features and candidates "
            f"{candidates_MD.shape[1]}: are both from one model?"
        )
    for name, rows, groups in (
        ("query_groups_N", queries_ND, query_groups_N),
        ("candidate_groups_M", candidates_MD, candidate_groups_M),
    ):
        if groups.shape != (len(rows),) or not np.issubdtype(groups.dtype, np.integer):
            raise ValueError(
                f"{name} is {groups.dtype} {list(groups.shape)}: give one integer for each of the "
                f"{len(rows)} rows"
            )
    if chunk < 1:
        raise ValueError(f"chunk = {chunk} must be 1 or more")
    mesh = mesh or first_device()
    split, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    chunk = min(chunk, max(len(candidates_MD), 1))
    pieces = (
        _pad(candidates_MD, -len(candidates_MD) % chunk).reshape(-1, chunk, queries_ND.shape[1]),
        _pad(candidate_groups_M.astype(np.int32), -len(candidates_MD) % chunk).reshape(-1, chunk),
    )
    step = mesh.size * min(_QUERIES, max(-(-len(queries_ND) // mesh.size), 1))
    ranks = [np.zeros(0, np.int32)]
    with jax.set_mesh(mesh):  # also where the caller has set another one
        placed = jax.device_put(pieces, NamedSharding(mesh, whole))
        for start in range(0, len(queries_ND), step):
            part = slice(start, start + step)
            rows = queries_ND[part], query_groups_N[part].astype(np.int32)
            count = len(rows[0])
            padded = [_pad(x, step - count) for x in rows]  # one shape, one compilation
            device_rows = jax.device_put(padded, NamedSharding(mesh, split))
            ranks.append(np.asarray(_ranks(*device_rows, *placed, mesh=mesh))[:count])
    return np.concatenate(ranks)


@functools.partial(jax.jit, static_argnames="mesh")
def _ranks(
    queries_CD: jax.Array,
    groups_C: jax.Array,
    candidates_pcD: jax.Array,
    groups_pc: jax.Array,
    *,
    mesh: Mesh,
) -> jax.Array:
    def local(
        queries_CD: jax.Array, groups_C: jax.Array, candidates_pcD: jax.Array, groups_pc: jax.Array
    ) -> jax.Array:
        def cosines(candidates_cD: jax.Array, groups_c: jax.Array) -> tuple[jax.Array, jax.Array]:
            # In full float32: the default precision of an accelerator would round the inputs.
            cosine_Cc = jnp.matmul(queries_CD, candidates_cD.T, precision=jax.lax.Precision.HIGHEST)
            return cosine_Cc, groups_C[:, None] == groups_c

        def nearest_own(piece: tuple[jax.Array, jax.Array]) -> jax.Array:
            cosine_Cc, own_Cc = cosines(*piece)
            own_Cc &= piece[1] != NO_GROUP
            return jnp.max(jnp.where(own_Cc, cosine_Cc, -jnp.inf), axis=1)

        own_C = jax.lax.map(nearest_own, (candidates_pcD, groups_pc)).max(axis=0)

        # The cosines are computed again, by the same product, so that equal ones compare as equal.
        def in_the_way(piece: tuple[jax.Array, jax.Array]) -> jax.Array:
            cosine_Cc, own_Cc = cosines(*piece)
            other_Cc = ~own_Cc & (piece[1] != NO_GROUP)
            return jnp.sum(other_Cc & (cosine_Cc >= own_C[:, None]), axis=1, dtype=jnp.int32)

        rank_C = jax.lax.map(in_the_way, (candidates_pcD, groups_pc)).sum(axis=0)
        return jnp.where(own_C > -jnp.inf, rank_C, UNRANKED)

    split, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    return jax.shard_map(local, mesh=mesh, in_specs=(split, split, whole, whole), out_specs=split)(
        queries_CD, groups_C, candidates_pcD, groups_pc
    )


def _pad(x: np.ndarray, rows: int) -> np.ndarray:
    """With rows of zeros behind; groups, which are integers, with no group."""
    fill = NO_GROUP if x.ndim == 1 else 0
    return np.pad(x, [(0, rows)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
