"""Attention with all scores at once, by a table of who sees whom.

Letters: B batch, T query time, S key time, H heads, G key/value heads, N heads per key/value head, K head width, M
masks (B or 1), P the tokens of a prefix, R = N·T.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from adaptlab import leaf
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
    v_BGKS = leaf.as_written(v_BSGK.transpose(0, 2, 3, 1))
    y_BGRK = _averages(*_scores(q_BTHK, k_BSGK, mask_BTS), v_BGKS)
    y_BTHK = y_BGRK.reshape(B, G, H // G, T, K).transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)
    return constrain(y_BTHK, ("batch", "time", "heads", None))


def dense_probabilities(q_BTHK: jax.Array, k_BSGK: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Return the probabilities of `dense_attention`, softmax(q kᵀ / √K), float32 `[B, H, T, S]`."""
    B, T, H, _ = q_BTHK.shape
    return _probabilities(*_scores(q_BTHK, k_BSGK, mask_BTS)).reshape(B, H, T, -1)


def _scores(q_BTHK: jax.Array, k_BSGK: jax.Array, mask_BTS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """q kᵀ / √K as float32 `[B, G, R, S]`, and the mask `[M, 1, R, S]`.

    The N query heads of a key head are further rows of one product with it, so keys are never repeated, and scores keep
    one shape from product to product: a reshape between them costs a copy on a CPU (attention, forward and backward:
    1.2 to 1.9 times as fast without). The queries are scaled, of which there are fewer than scores; in 16 bits, where
    that would round them once more, the scores.
    """
    (B, T, H, K), (M, _, S), G = q_BTHK.shape, mask_BTS.shape, k_BSGK.shape[2]
    N, before = H // G, q_BTHK.dtype == jnp.float32
    q_BTHK = q_BTHK * K**-0.5 if before else q_BTHK
    q_BGRK = q_BTHK.reshape(B, T, G, N, K).transpose(0, 2, 3, 1, 4).reshape(B, G, N * T, K)
    k_BGKS = leaf.as_written(k_BSGK.transpose(0, 2, 3, 1))
    scores_BGRS = jnp.einsum("bgrk,bgks->bgrs", q_BGRK, k_BGKS, preferred_element_type=jnp.float32)
    mask_M1RS = jnp.broadcast_to(mask_BTS[:, None], (M, N, T, S)).reshape(M, 1, N * T, S)
    return scores_BGRS if before else scores_BGRS * K**-0.5, mask_M1RS


def _probabilities(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax(scores) over the last axis, where the mask is true; 0 elsewhere."""
    return jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min), axis=-1)


def _product(weights_BGRS: jax.Array, v_BGKS: jax.Array) -> jax.Array:
    return jnp.einsum("bgrs,bgks->bgrk", weights_BGRS.astype(v_BGKS.dtype), v_BGKS)


@jax.custom_jvp
def _averages(scores_BGRS: jax.Array, mask: jax.Array, v_BGKS: jax.Array) -> jax.Array:
    """y = p v, p = softmax(scores), in v's dtype."""
    return checkpoint_name(_product(_probabilities(scores_BGRS, mask), v_BGKS), "attended")


@_averages.defjvp
def _averages_jvp(primals: Any, tangents: Any) -> Any:
    """dy = (p ∘ ds) v - (Σ p ds) y + p dv.

    Its transpose is ds = p ∘ (dy vᵀ - Σ dy y): the sum is over a head's width, K, and not over the S scores
    (arXiv:2205.14135, app. B.2). Of scores, mask and probabilities, only p is kept for the way back.
    """
    (scores, mask, v), (ds, _, dv) = primals, tangents
    p = _probabilities(scores, mask)
    y = checkpoint_name(_product(p, v), "attended")
    weights = p * ds
    mean = jnp.sum(weights, axis=-1, keepdims=True) * y.astype(p.dtype)
    return y, _product(weights, v) - mean.astype(y.dtype) + _product(p, dv)
