"""Linear probe: multinomial logistic regression on frozen embeddings.

Shapes: N training rows, M test rows, D features, Y classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .labelled import Metrics, held_out, labelled_rows, ranks_to_metrics, true_class_ranks

L2_CANDIDATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 0.2
ITERATIONS = 500
GRADIENT_TOLERANCE = 1e-5
LOSS_TOLERANCE = 1e-7  # float32 resolves no smaller relative decrease

Weights = dict[str, jax.Array]  # kernel [D, Y], bias [Y]


def linear_probe(
    train_ND: np.ndarray,
    train_labels_N: np.ndarray,
    test_MD: np.ndarray,
    test_labels_M: np.ndarray,
    *,
    num_classes: int,
    l2_candidates: Sequence[float] = L2_CANDIDATES,
    seed: int = 0,
) -> Metrics:
    """Accuracy of a linear classifier of the standardised embeddings.

    As in CLIP's linear probe (Radford et al. 2021, appendix A.3): full-batch L-BFGS, the strength
    of the L2 penalty swept on a part of the training rows that is held out, then a fit of all of
    them. The part is a fifth of each class, drawn by the seed; the strength with the lowest
    cross-entropy wins, which is less coarse than accuracy on few rows. The test rows choose
    nothing.

    Args:
      train_ND: the rows to fit.
      train_labels_N: integers in [0, num_classes); rows of label -1 are left out.
      test_MD: the rows to classify.
      test_labels_M: their labels; rows of label -1 are left out.
      num_classes: number of classes.
      l2_candidates: strengths of the penalty, see `fit_logistic`; a single one needs no held-out
        part.
      seed: of the held-out part.

    Returns:
      "top1", "top5" and "loss" (mean cross-entropy) of the test rows, "train_top1", "l2" (the
      strength chosen), "count" and "train_count" (labelled rows).

    Raises:
      ValueError: rows and labels that do not fit, no labelled row, no candidate or a negative one,
        a sweep without two rows of any class.
    """
    candidates = sorted(l2_candidates)
    if not candidates or candidates[0] < 0:
        raise ValueError(f"l2_candidates={tuple(l2_candidates)}: give strengths of 0 or more")
    train_ND, train_labels_N = labelled_rows("train", train_ND, train_labels_N, num_classes)
    test_MD, test_labels_M = labelled_rows("test", test_MD, test_labels_M, num_classes)
    if train_ND.shape[1] != test_MD.shape[1]:
        raise ValueError(f"train has {train_ND.shape[1]} features and test {test_MD.shape[1]}")

    l2 = candidates[0]
    if len(candidates) > 1:
        held_out_N = held_out(train_labels_N, seed, HELD_OUT)
        fitted_ND = standardise(train_ND, train_ND[~held_out_N])
        # Held-out rows stay in place with weight 0: every fit has one shape and is compiled once.
        fits = [
            fit_logistic(fitted_ND, train_labels_N, num_classes, c, ~held_out_N) for c in candidates
        ]
        losses = [
            _cross_entropy(_logits(fit, fitted_ND[held_out_N]), train_labels_N[held_out_N])
            for fit in fits
        ]
        l2 = candidates[int(np.argmin(losses))]

    fit = fit_logistic(standardise(train_ND, train_ND), train_labels_N, num_classes, l2)
    train_NY = _logits(fit, standardise(train_ND, train_ND))
    test_MY = _logits(fit, standardise(test_MD, train_ND))
    return ranks_to_metrics(true_class_ranks(test_MY, test_labels_M)) | {
        "loss": _cross_entropy(test_MY, test_labels_M),
        "train_top1": float(np.mean(true_class_ranks(train_NY, train_labels_N) == 0)),
        "l2": l2,
        "train_count": len(train_ND),
    }


def fit_logistic(
    x_ND: np.ndarray,
    labels_N: np.ndarray,
    num_classes: int,
    l2: float,
    weight_N: np.ndarray | None = None,
) -> Weights:
    """Minimises weighted mean cross-entropy + l2/2 * |kernel|^2; the bias is free.

    With all weights 1 this is scikit-learn's LogisticRegression(C=1/(l2*N)).

    Args:
      x_ND: float32 rows, best standardised.
      labels_N: integers in [0, num_classes).
      num_classes: number of classes.
      l2: strength of the penalty, for a mean loss: it need not follow N.
      weight_N: weight of each row; all 1 when None.

    Returns:
      kernel [D, Y] and bias [Y].
    """
    weight_N = np.ones(len(x_ND)) if weight_N is None else weight_N
    start = {
        "kernel": np.zeros((x_ND.shape[1], num_classes), np.float32),
        "bias": np.zeros(num_classes, np.float32),
    }
    share_N = (weight_N / weight_N.sum()).astype(np.float32)
    return _minimise(start, x_ND, labels_N, share_N, np.float32(l2))


@jax.jit
def _minimise(
    start: Weights, x_ND: jax.Array, labels_N: jax.Array, share_N: jax.Array, l2: jax.Array
) -> Weights:
    """L-BFGS until the gradient vanishes or the loss no longer falls."""
    optimiser = optax.lbfgs()

    def objective(weights: Weights) -> jax.Array:
        return penalised_loss(weights, x_ND, labels_N, share_N, l2)

    value_and_grad = optax.value_and_grad_from_state(objective)

    def goes_on(carry: tuple) -> jax.Array:
        _, _, step, slope, decrease = carry
        return (step < ITERATIONS) & (slope > GRADIENT_TOLERANCE) & (decrease > LOSS_TOLERANCE)

    def update(carry: tuple) -> tuple:
        weights, state, step, _, _ = carry
        value, grad = value_and_grad(weights, state=state)
        updates, state = optimiser.update(
            grad, state, weights, value=value, grad=grad, value_fn=objective
        )
        # The line search has evaluated both at the new weights already.
        after = optax.tree.get(state, "value")
        slope = optax.tree.norm(optax.tree.get(state, "grad"), ord=jnp.inf)
        decrease = (value - after) / jnp.maximum(value, 1e-12)
        return optax.apply_updates(weights, updates), state, step + 1, slope, decrease

    carry = (start, optimiser.init(start), 0, jnp.float32(jnp.inf), jnp.float32(jnp.inf))
    return jax.lax.while_loop(goes_on, update, carry)[0]


def penalised_loss(
    weights: Weights,
    x_ND: jax.Array,
    labels_N: jax.Array,
    share_N: jax.Array,
    l2: float | jax.Array,
) -> jax.Array:
    """What `fit_logistic` minimises; share_N are weights that sum to 1."""
    product_NY = jnp.matmul(x_ND, weights["kernel"], precision=jax.lax.Precision.HIGHEST)
    losses_N = optax.losses.softmax_cross_entropy_with_integer_labels(
        product_NY + weights["bias"], labels_N
    )
    return jnp.sum(share_N * losses_N) + l2 / 2 * jnp.sum(weights["kernel"] ** 2)


def _logits(weights: Weights, x_ND: np.ndarray) -> np.ndarray:
    return x_ND @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])


def _cross_entropy(logits_NY: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean over the rows."""
    shifted_NY = logits_NY - logits_NY.max(axis=1, keepdims=True)
    log_sum_N = np.log(np.exp(shifted_NY).sum(axis=1, dtype=np.float64))
    return float(np.mean(log_sum_N - shifted_NY[np.arange(len(labels_N)), labels_N]))


def standardise(x_ND: np.ndarray, of_ND: np.ndarray) -> np.ndarray:
    """x in deviations from the mean of other rows; a feature constant in those is only centred."""
    mean_D, std_D = of_ND.mean(axis=0, dtype=np.float64), of_ND.std(axis=0, dtype=np.float64)
    constant_D = std_D <= 1e-6 * np.maximum(np.abs(mean_D), 1e-30)
    return ((x_ND - mean_D) / np.where(constant_D, 1, std_D)).astype(np.float32)
