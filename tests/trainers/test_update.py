"""What a step does with a gradient, whatever it is of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from codecvit.trainers.run_config import EmaConfig, RunConfig
from codecvit.trainers.update import apply_gradient, init_run_state

CONFIG = RunConfig(total_steps=10, ema=EmaConfig(enabled=True, decay=0.5))
OPTIMIZER = optax.adam(0.1)
PARAMS = {"encoder": {"w": jnp.ones(3)}, "heads": {"a": {"centres": jnp.ones((2, 2))}}}
ROWS = {"x": {"weight": jnp.array([1.0, 0.0])}, "y": {"weight": jnp.array([0.0, 0.0])}}


def apply(loss, head_gradient=1.0):
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    grads["heads"]["a"]["centres"] *= head_gradient
    state = init_run_state(CONFIG, PARAMS, OPTIMIZER) | {"more": jnp.ones(2)}
    return state, *apply_gradient(CONFIG, OPTIMIZER, state, ROWS, jnp.float32(loss), grads)


def test_a_step_moves_parameters_moments_and_average():
    before, after, metrics = apply(2.0)
    np.testing.assert_allclose(after["params"]["encoder"]["w"], 0.9, rtol=1e-5)
    np.testing.assert_allclose(after["ema"]["w"], 0.95, rtol=1e-5)
    assert (after["step"], after["nan_steps"], after["bad_records"]) == (1, 0, 3)
    assert (after["more"] == before["more"]).all()  # of the trainer
    assert metrics["loss"] == 2
    assert metrics["grad_norm/encoder"] == pytest.approx(3**0.5)
    assert metrics["grad_norm/head_a"] == pytest.approx(2)


@pytest.mark.parametrize(
    ("loss", "head_gradient"), [(np.nan, 1.0), (np.inf, 1.0), (2.0, np.nan), (2.0, -np.inf)]
)
def test_neither_a_loss_nor_a_gradient_that_is_not_finite_moves_anything(loss, head_gradient):
    """The gradient of one part alone, too: the others would be moved by half a step."""
    before, after, _ = apply(loss, head_gradient)
    for part in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
    counted = (after["step"], after["nan_steps"], after["nan_steps_in_row"], after["bad_records"])
    assert counted == (1, 1, 1, 3)
