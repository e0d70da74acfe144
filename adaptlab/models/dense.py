"""Attention with all scores at once, by a table of who sees whom.

Letters: B batch, T query time, S key time, H heads, G key/value heads, N heads per key/value head, K head width, M
masks (B or 1), P the tokens of a prefix, R = N·T.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from adaptlab.shard import constrain

__all__ = ["dense_attention", "dense_probabilities", "with_prefix"]


def with_prefix(
    node: Any, k_BSGK: jax.Array, v_BSGK: jax.Array, mask_BTS: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Put a prefix's keys and values, which all queries see, in front of the sequence's own."""
    if node is None:
        return k_BSGK, v_BSGK, mask_BTS

    def front(prefix_PGK: jax.Array, x_BSGK: jax.Array) -> jax.Array:
        prefix = jnp.broadcast_to(prefix_PGK[None].astype(x_BSGK.dtype), (x_BSGK.shape[0], *prefix_PGK.shape))
        return jnp.concatenate([prefix, x_BSGK], axis=1)

    k_PGK, v_PGK = node.keys_values()
    seen = jnp.ones((*mask_BTS.shape[:2], k_PGK.shape[0]), bool)
    return front(k_PGK, k_BSGK), front(v_PGK, v_BSGK), jnp.concatenate([seen, mask_BTS], axis=2)


def dense_attention(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Grouped-query attention (arXiv:2305.13245): softmax(q kᵀ / √K) v, query head h reading key head h·G//H.

    Logits and the softmax are float32. Every query must see at least one key.

    Returns:
      `[B, T, H, K]` in q's dtype.
    """
    q_BTHK = constrain(q_BTHK, ("batch", "time", "heads", None))
    k_BSGK, v_BSGK = (constrain(x, ("batch", None, "kv_heads", None)) for x in (k_BSGK, v_BSGK))
    (B, T, H, K), G = q_BTHK.shape, k_BSGK.shape[2]
    weights_BGRS = _weights(q_BTHK, k_BSGK, mask_BTS).astype(v_BSGK.dtype)
    y_BGRK = jnp.einsum("bgrs,bsgk->bgrk", weights_BGRS, v_BSGK)
    y_BTHK = y_BGRK.reshape(B, G, H // G, T, K).transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)
    return checkpoint_name(constrain(y_BTHK, ("batch", "time", "heads", None)), "attended")


def dense_probabilities(q_BTHK: jax.Array, k_BSGK: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Return the probabilities of `dense_attention`, softmax(q kᵀ / √K), float32 `[B, H, T, S]`."""
    B, T, H, _ = q_BTHK.shape
    return _weights(q_BTHK, k_BSGK, mask_BTS).reshape(B, H, T, -1)


def _weights(q_BTHK: jax.Array, k_BSGK: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """The probabilities as `[B, G, R, S]`: the N query heads of a key head are further rows of one product with it.

    So keys and values are never repeated, and scores keep one shape from product to product: a reshape between them
    costs a copy on a CPU (attention, forward and backward: 1.2 to 1.9 times as fast without).
    """
    (B, T, H, K), (M, _, S), G = q_BTHK.shape, mask_BTS.shape, k_BSGK.shape[2]
    N = H // G
    q_BGRK = q_BTHK.reshape(B, T, G, N, K).transpose(0, 2, 3, 1, 4).reshape(B, G, N * T, K)
    scores_BGRS = jnp.einsum("bgrk,bsgk->bgrs", q_BGRK, k_BSGK, preferred_element_type=jnp.float32)
    mask_M1RS = jnp.broadcast_to(mask_BTS[:, None], (M, N, T, S)).reshape(M, 1, N * T, S)
    return _masked_softmax(scores_BGRS, mask_M1RS, K**-0.5)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _masked_softmax(scores: jax.Array, mask: jax.Array, scale: float) -> jax.Array:
    """p = softmax(scale · scores) over the last axis, where the mask is true; 0 elsewhere."""
    return jax.nn.softmax(jnp.where(mask, scores * scale, jnp.finfo(scores.dtype).min), axis=-1)


@_masked_softmax.defjvp
def _masked_softmax_jvp(scale: float, primals: Any, tangents: Any) -> Any:
    """dp = scale · p (ds - Σ p ds): of scores, mask and probabilities, only p is kept for the way back."""
    p, ds = _masked_softmax(*primals, scale), tangents[0]
    return p, scale * p * (ds - jnp.sum(p * ds, axis=-1, keepdims=True))
