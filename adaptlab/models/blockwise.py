"""Exact attention whose memory grows with the length, not with its square: scores exist a block at a time.

Letters: B batch, T query time, S key time, H heads, G key/value heads, N heads per key/value head, K head width, M rows
of a mask (B or 1), I blocks of queries, J blocks of keys, t and s the queries and keys of one block.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaptlab.models.mask import OUTSIDE, Mask, sees

__all__ = [
    "BLOCK",
    "NEVER",
    "Places",
    "attend",
    "attend_everywhere",
    "attend_tangent",
    "blockwise_attention",
    "divisor",
    "join",
]

BLOCK = 512
"""Queries and keys of a block: its float32 scores are 1 MiB a head and row."""

NEVER = -1e30
"""L of no key at all: finite, so that the difference of two of them is."""


class Places(NamedTuple):
    """What decides who sees whom, of the queries or keys of one call.

    Attributes:
      segments_MT: int32 ids, see `adaptlab.models.mask.Mask`.
      at_T: int32, places in the row; within a block they ascend.
    """

    segments_MT: Any
    at_T: Any


class _How(NamedTuple):
    causal: bool
    block: int


_computed_anew = functools.partial(jax.checkpoint, prevent_cse=False)  # inside of a scan nothing is merged anyway


def blockwise_attention(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, mask: Mask, *, block: int = BLOCK
) -> tuple[jax.Array, jax.Array]:
    """Attention by an online softmax over blocks of keys (arXiv:2112.05682, sec. 3; arXiv:2205.14135, alg. 1).

    For queries i and keys j with scores s_ij = q_i·k_j / √K, block after block of j,

        m' = max(m, max_j s_ij),  l' = e^(m - m') l + Σ_j e^(s_ij - m'),  o' = e^(m - m') o + Σ_j e^(s_ij - m') v_j,

    and in the end o_i = o / l, L_i = m + log l. Derivatives start from p_ij = e^(s_ij - L_i), a block at a time again:

        dL_i = Σ_j p_ij ds_ij,    do_i = Σ_j p_ij (ds_ij v_j + dv_j) - o_i dL_i.

    That is the whole rule: the way back is its transpose, which multiplies as often as FlashAttention's (arXiv:
    2205.14135, alg. 4) and keeps q, k, v, o and L only. Forward and second derivatives and `vmap` work as anywhere.
    With a causal mask, blocks in the future are not computed.

    Args:
      q_BTHK: queries.
      k_BTGK: keys; G divides H, and query head h reads key head h·G//H.
      v_BTGK: values.
      mask: who may look at whom. Every query must see at least one key.
      block: queries and keys of a block. Rows that it does not divide are filled up.

    Returns:
      o `[B, T, H, K]` in q's dtype, and L `[B, T, H]` in float32. Scores and the softmax are float32.

    Raises:
      ValueError: a block below 1.
    """
    if block < 1:
        raise ValueError(f"block={block} must be at least 1.")
    T = mask.length
    block = min(block, T)
    fill = -T % block
    segments_MT = jnp.pad(mask.segments_MT(), ((0, 0), (0, fill)), constant_values=OUTSIDE)
    places = Places(segments_MT, jnp.arange(T + fill, dtype=jnp.int32))
    q, k, v = (jnp.pad(x, ((0, 0), (0, fill), (0, 0), (0, 0))) if fill else x for x in (q_BTHK, k_BTGK, v_BTGK))
    o_BTHK, log_BTH = _blockwise(q, k, v, places, _How(mask.causal, block))
    return o_BTHK[:, :T], log_BTH[:, :T]


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _blockwise(q: jax.Array, k: jax.Array, v: jax.Array, places: Places, how: _How) -> tuple[jax.Array, jax.Array]:
    o, log = attend(q, k, v, places, places, how.causal, how.block)
    return o.astype(q.dtype), log


@_blockwise.defjvp
def _blockwise_jvp(how: _How, primals: Any, tangents: Any) -> Any:
    q, k, v, places = primals
    o, log = _blockwise(q, k, v, places, how)
    do, dlog = attend_tangent((q, k, v), tangents[:3], log, places, places, how.causal, how.block)
    return (o, log), ((do - o * dlog[..., None]).astype(o.dtype), dlog)


def join(one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return (o, L) of attention over two sets of keys from those over each: o = Σ e^(L_c - L) o_c, e^L = Σ e^(L_c)."""
    (o, log), (o_other, log_other) = one, other
    total = jnp.logaddexp(log, log_other)
    share, rest = (jnp.exp(x - total)[..., None] for x in (log, log_other))
    return o * share + o_other * rest, total


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, queries: Places, keys: Places, causal: bool, block: int
) -> tuple[jax.Array, jax.Array]:
    """Return float32 o `[B, T, H, K]` and L `[B, T, H]` of attention over some keys; blocks divide both lengths.

    A query that sees none of these keys has o = 0 and an L that is lower than any other.
    """
    q, k, v, queries, keys = _together((q, k, v, queries, keys))
    G, scale = k.shape[2], q.shape[-1] ** -0.5
    tiles = (*(_tiles(x, block, G) for x in (k, v)), *_tiled(keys, block))

    def row(_: None, xs: Any) -> tuple[None, Any]:
        q_BGNtK, mine = xs[0], Places(*xs[1:])

        def tile(carry: Any, xs: Any) -> tuple[Any, None]:
            (k_BGsK, v_BGsK), theirs = xs[:2], Places(*xs[2:])

            def more(carry: Any) -> Any:
                o, peak, total = carry
                seen = _seen(mine, theirs, causal)
                s = jnp.where(seen, _scores(q_BGNtK, k_BGsK) * scale, NEVER)
                higher = jnp.maximum(peak, jnp.max(s, axis=-1))
                p = jnp.where(seen, jnp.exp(s - higher[..., None]), 0.0)
                fade = jnp.exp(peak - higher)
                o = o * fade[..., None] + _weighted(p, v_BGsK)
                return o, higher, total * fade + jnp.sum(p, axis=-1)

            return _unless_future(more, mine, theirs, causal, carry), None

        shape = q_BGNtK.shape[:-1]
        start = (jnp.zeros(q_BGNtK.shape, jnp.float32), jnp.full(shape, NEVER, jnp.float32), jnp.zeros(shape))
        (o, peak, total), _ = jax.lax.scan(tile, start, tiles)
        some = jnp.where(total > 0, total, 1.0)
        return None, (o / some[..., None], jnp.where(total > 0, peak + jnp.log(some), NEVER))

    _, (o, log) = jax.lax.scan(row, None, (_tiles(q, block, G, heads=True), *_tiled(queries, block)))
    return _joined(o), _joined(log)


def attend_tangent(
    primals: Any, tangents: Any, log_BTH: jax.Array, queries: Places, keys: Places, causal: bool, block: int
) -> tuple[jax.Array, jax.Array]:
    """Return these keys' part in Σ_j p_ij (ds_ij v_j + dv_j) and in Σ_j p_ij ds_ij, `[B, T, H, K]` and `[B, T, H]`.

    What the way back needs of scores and probabilities is computed anew, each once.

    Args:
      primals: q, k, v.
      tangents: dq, dk, dv.
      log_BTH: L of attention over all keys, of which these may be some.
      queries: who asks.
      keys: who is asked.
      causal: see `Mask`.
      block: divides both lengths.
    """
    ((q, k, v), queries, keys), (dq, dk, dv) = _together((primals, queries, keys)), tangents
    G, scale = k.shape[2], q.shape[-1] ** -0.5
    tiles = (*(_tiles(x, block, G) for x in (k, v, dk, dv)), *_tiled(keys, block))

    @_computed_anew
    def of_row(xs: Any, tiles: Any) -> Any:
        (q_BGNtK, dq_BGNtK, log_BGNt), mine = xs[:3], Places(*xs[3:])

        @_computed_anew
        def tile(carry: Any, xs: Any) -> tuple[Any, None]:
            (k_BGsK, v_BGsK, dk_BGsK, dv_BGsK), theirs = xs[:4], Places(*xs[4:])

            def more(carry: Any) -> Any:
                do, dlog = carry
                s = _scores(q_BGNtK, k_BGsK) * scale
                p = jnp.where(_seen(mine, theirs, causal), jnp.exp(s - log_BGNt[..., None]), 0.0)
                ds = scale * (_scores(dq_BGNtK, k_BGsK) + _scores(q_BGNtK, dk_BGsK))
                moved = p * ds
                return do + _weighted(moved, v_BGsK) + _weighted(p, dv_BGsK), dlog + jnp.sum(moved, axis=-1)

            return _unless_future(more, mine, theirs, causal, carry), None

        start = (jnp.zeros(q_BGNtK.shape, jnp.float32), jnp.zeros(log_BGNt.shape, jnp.float32))
        return jax.lax.scan(tile, start, tiles)[0]

    rows = (
        *(_tiles(x, block, G, heads=True) for x in (q, dq)),
        _tiles(log_BTH[..., None], block, G, heads=True)[..., 0],
    )
    _, (do, dlog) = jax.lax.scan(lambda _, xs: (None, of_row(xs, tiles)), None, (*rows, *_tiled(queries, block)))
    return _joined(do), _joined(dlog)


def _together(arrays: Any) -> Any:
    """The same, as if each depended on all of them.

    Places do not depend on what trains: differentiation would compute the masks of all blocks and heads beforehand and
    keep them, T² of them in float32.
    """
    return jax.lax.optimization_barrier(arrays)


def attend_everywhere(q_BTHK: jax.Array, k_PGK: jax.Array, v_PGK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return float32 o and L of attention over a few keys that all queries of all rows see: a prefix."""
    (B, T, H, K), G = q_BTHK.shape, k_PGK.shape[1]
    q_BTGNK = q_BTHK.reshape(B, T, G, H // G, K)
    k_PGK, v_PGK = k_PGK.astype(q_BTHK.dtype), v_PGK.astype(q_BTHK.dtype)
    s = jnp.einsum("btgnk,pgk->btgnp", q_BTGNK, k_PGK, preferred_element_type=jnp.float32) * K**-0.5
    log_BTGN = jax.nn.logsumexp(s, axis=-1)
    p = jnp.exp(s - log_BTGN[..., None]).astype(v_PGK.dtype)
    o = jnp.einsum("btgnp,pgk->btgnk", p, v_PGK, preferred_element_type=jnp.float32)
    return o.reshape(B, T, H, K), log_BTGN.reshape(B, T, H)


def divisor(length: int, block: int) -> int:
    """Return the largest block of at most `block` that divides a length."""
    return next(size for size in range(min(block, length), 0, -1) if length % size == 0)


def _tiles(x_BTHK: jax.Array, block: int, G: int, heads: bool = False) -> jax.Array:
    """As `[J, B, G, s, K]`; with `heads`, those of a key head together, as `[I, B, G, N, t, K]`."""
    B, T, H, K = x_BTHK.shape
    x = x_BTHK.reshape(B, T // block, block, G, H // G, K).transpose(1, 0, 3, 4, 2, 5)
    return x if heads else x[:, :, :, 0]


def _tiled(places: Places, block: int) -> Places:
    M, T = places.segments_MT.shape
    segments = places.segments_MT.reshape(M, T // block, block).transpose(1, 0, 2)
    return Places(segments, places.at_T.reshape(T // block, block))


def _joined(x: jax.Array) -> jax.Array:
    """`[I, B, G, N, t, ...]` as `[B, T, H, ...]`."""
    I, B, G, N, t = x.shape[:5]
    return jnp.moveaxis(x, (0, 4), (1, 2)).reshape(B, I * t, G * N, *x.shape[5:])


def _seen(mine: Places, theirs: Places, causal: bool) -> jax.Array:
    seen_Mts = sees(mine.segments_MT, theirs.segments_MT, mine.at_T, theirs.at_T, causal)
    return seen_Mts[:, None, None]


def _unless_future(more: Any, mine: Places, theirs: Places, causal: bool, carry: Any) -> Any:
    if not causal:
        return more(carry)
    return jax.lax.cond(jnp.max(mine.at_T) >= jnp.min(theirs.at_T), more, lambda carry: carry, carry)


def _scores(q_BGNtK: jax.Array, k_BGsK: jax.Array) -> jax.Array:
    return jnp.einsum("bgntk,bgsk->bgnts", q_BGNtK, k_BGsK, preferred_element_type=jnp.float32)


def _weighted(p_BGNts: jax.Array, v_BGsK: jax.Array) -> jax.Array:
    return jnp.einsum("bgnts,bgsk->bgntk", p_BGNts.astype(v_BGsK.dtype), v_BGsK, preferred_element_type=jnp.float32)
