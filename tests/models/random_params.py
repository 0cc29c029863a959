"""Parameters away from their initial values, and comparisons of trees."""

from __future__ import annotations

import jax
import numpy as np


def random_params(module, *inputs, seed=0):
    """Of a module, every leaf random, so that no bias or scale can be forgotten."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return randomise(shapes, seed)


def randomise(shapes, seed=0):
    """A tree of shapes -> float32 arrays: scales around 1, matrices of unit gain, the rest 0.25."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        name = path[-1].key
        if name == "scale":
            return (1 + 0.2 * rng.normal(size=x.shape)).astype(np.float32)
        spread = x.shape[-2] ** -0.5 if name == "kernel" else 0.25
        return (rng.normal(size=x.shape) * spread).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def exact(tree):
    """The same in float64."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def assert_trees_close(a, b, tolerance):
    """Leaf by leaf, relative to the largest entry of the leaf."""
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        error = np.abs(x - y).max() / (np.abs(y).max() + 1e-6)
        assert error <= tolerance, f"{jax.tree_util.keystr(path)}: {error}"


def assert_close_in_direction(low, high, cosine=0.999):
    """bfloat16 beside float32: the same up to rounding, and not the same numbers."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (low, high))
    assert cosine < a @ b / np.linalg.norm(a) / np.linalg.norm(b) < 1
