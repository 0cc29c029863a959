"""The attentive classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codecvit.models.classifier import AttentiveClassifier

D = 128
HEAD = AttentiveClassifier(7, "float32")


@pytest.fixture(scope="module")
def params():
    return HEAD.init(jax.random.key(0), jnp.zeros((1, 1, D)), jnp.ones(1, jnp.int32))["params"]


def test_it_starts_as_published(params):
    assert params["pool"]["mlp"]["fc1"]["kernel"].shape == (D, 4 * D)
    kernel = np.asarray(params["fc"]["kernel"])
    assert kernel.shape == (D, 7) and kernel.std() == pytest.approx(0.02 * 1e-3, rel=0.1)
    assert not params["fc"]["bias"].any()
    large = AttentiveClassifier(174, "float32")
    leaves = jax.eval_shape(
        lambda: large.init(jax.random.key(0), jnp.zeros((1, 1, 1024)), jnp.ones(1, jnp.int32))
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(leaves))
    assert count == 12_594_176 + 2 * 1024 + 1025 * 174  # the published pooling head, norm, linear


def test_tokens_past_the_length_and_other_rows_do_not_matter(params):
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(3, 9, D)).astype(np.float32)
    lengths = jnp.array([9, 4, 1])
    logits = HEAD.apply({"params": params}, tokens, lengths)
    assert logits.dtype == jnp.float32
    for row, length in enumerate([9, 4, 1]):
        alone = HEAD.apply({"params": params}, tokens[row : row + 1, :length], jnp.array([length]))
        np.testing.assert_allclose(logits[row], alone[0], atol=1e-9)
    assert (logits[0] != HEAD.apply({"params": params}, tokens, lengths - 1)[0]).any()


def test_a_width_without_heads_of_64_is_refused():
    with pytest.raises(ValueError, match="width 100: .* multiple of 64"):
        HEAD.init(jax.random.key(0), jnp.zeros((1, 1, 100)), jnp.ones(1, jnp.int32))
