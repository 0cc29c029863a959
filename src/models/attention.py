"""Attention behind one function, with one entry per implementation: bidirectional, causal or with a
bidirectional prefix.

An implementation never ignores a mask that it was given: what it does not honour raises.

Shape suffixes: B batch, L queries and keys of a row, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .splash import LANES, splash

_MASKED = -1e30  # finite, so that a row without a single valid key stays finite too


def attention(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    *,
    lengths_B: jax.Array | None = None,
    segment_ids_BL: jax.Array | None = None,
    causal_from: int | None = None,
    impl: str = "auto",
) -> jax.Array:
    """Softmax attention, scale K^-0.5, softmax in float32.

    Args:
      q_BLHK, k_BLHK, v_BLHK: queries, keys and values of one dtype.
      lengths_B: number of valid tokens of each row, a prefix; keys past it are not attended to.
      segment_ids_BL: tokens attend to tokens of their own id only (packed rows). Give padding an id
        of its own; so are rows masked whose valid tokens are no prefix.
      causal_from: keys from this index on are attended to only by queries at or after them; those
        before it by all. 0 is causal attention, the length of a prefix is a prefix-LM's, None is
        bidirectional. It combines with lengths and segment ids.
      impl: "xla" (any platform), "cudnn" (NVIDIA GPU, half precision, no segment ids, causal_from
        None or 0), "splash" (TPU, rows of a multiple of 128 tokens) or "auto": cudnn or splash
        where it applies, else xla.

    Returns:
      Array [B, L, H, K] of the queries' dtype. Rows past `lengths_B` hold finite numbers without
      meaning.

    Raises:
      ValueError: the name is unknown, `causal_from` lies outside the row, or the implementation
        can't do what is asked.
    """
    if causal_from is not None and not 0 <= causal_from <= q_BLHK.shape[1]:
        raise ValueError(
            f"attention causal_from = {causal_from} must lie in 0..{q_BLHK.shape[1]}, the row's "
            "tokens; None is bidirectional"
        )
    if impl == "auto":
        impl = _choose(q_BLHK, segment_ids_BL, causal_from)
    if impl not in IMPLEMENTATIONS:
        known = ", ".join(["auto", *IMPLEMENTATIONS])
        raise ValueError(f"attention impl = {impl!r} is unknown; choose one of {known}")
    return IMPLEMENTATIONS[impl](
        q_BLHK, k_BLHK, v_BLHK, lengths_B, segment_ids_BL, causal_from=causal_from
    )


def _choose(q_BLHK: jax.Array, segment_ids_BL: jax.Array | None, causal_from: int | None) -> str:
    platform = jax.default_backend()
    if platform == "tpu" and q_BLHK.shape[1] % LANES == 0:
        return "splash"
    half = q_BLHK.dtype in (jnp.bfloat16, jnp.float16)
    honoured = half and segment_ids_BL is None and not causal_from
    return "cudnn" if platform == "gpu" and honoured else "xla"


def _xla(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    lengths_B: jax.Array | None,
    segment_ids_BL: jax.Array | None,
    *,
    causal_from: int | None = None,
) -> jax.Array:
    """Plain matrix products; materialises the probabilities [B, H, L, L]."""
    scale = q_BLHK.shape[-1] ** -0.5
    logits_BHLS = jnp.einsum(
        "BLHK,BSHK->BHLS", q_BLHK * scale, k_BLHK, preferred_element_type=jnp.float32
    )
    if lengths_B is not None:
        valid_BS = jnp.arange(k_BLHK.shape[1]) < lengths_B[:, None]
        logits_BHLS = jnp.where(valid_BS[:, None, None, :], logits_BHLS, _MASKED)
    if segment_ids_BL is not None:
        same_BLS = segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :]
        logits_BHLS = jnp.where(same_BLS[:, None], logits_BHLS, _MASKED)
    if causal_from is not None:
        seen_LS = _seen(q_BLHK.shape[1], causal_from)
        logits_BHLS = jnp.where(seen_LS, logits_BHLS, _MASKED)
    probs_BHLS = jax.nn.softmax(logits_BHLS, axis=-1).astype(v_BLHK.dtype)
    return jnp.einsum("BHLS,BSHK->BLHK", probs_BHLS, v_BLHK)


def _seen(length: int, causal_from: int) -> jax.Array:
    """Bool [L, S]: which queries attend to which keys."""
    index = jnp.arange(length)
    return (index < causal_from) | (index <= index[:, None])


def _cudnn(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    lengths_B: jax.Array | None,
    segment_ids_BL: jax.Array | None,
    *,
    causal_from: int | None = None,
) -> jax.Array:
    """cuDNN's fused attention through jax.nn.dot_product_attention."""
    if segment_ids_BL is not None:
        raise ValueError("attention impl = 'cudnn' takes no segment ids; use impl = 'xla'")
    if causal_from:
        raise ValueError(
            f"attention impl = 'cudnn' is bidirectional or causal throughout, causal_from = "
            f"{causal_from} is neither; use impl = 'xla'"
        )
    if jax.default_backend() != "gpu":
        raise ValueError(
            f"attention impl = 'cudnn' needs an NVIDIA GPU, and this is {jax.default_backend()!r}; "
            "use impl = 'auto'"
        )
    if q_BLHK.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"attention impl = 'cudnn' takes bfloat16 or float16, got {q_BLHK.dtype}; "
            "use impl = 'xla'"
        )
    if lengths_B is not None:
        # A row without valid tokens (an unreadable record) would be 0/0 in the kernel.
        lengths_B = jnp.maximum(lengths_B, 1)
    return jax.nn.dot_product_attention(
        q_BLHK,
        k_BLHK,
        v_BLHK,
        query_seq_lengths=lengths_B,
        key_value_seq_lengths=lengths_B,
        is_causal=causal_from == 0,
        implementation="cudnn",
    )


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "xla": _xla,
    "cudnn": _cudnn,
    "splash": splash,
}
"""Implementations by name."""
