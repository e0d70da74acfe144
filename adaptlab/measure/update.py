"""The change of each weight matrix, ΔW = W' - W, and what its singular values say.

An adaptation leaves an array or a weight node where the base has W `[*L, D, F]`. Where nodes are low-rank side paths of
W itself, ΔW stays in factors and is never formed; everything else is the difference of two arrays.

Letters: L leading (layer) axes, D input width, F output width, R the factors' rank, K = min(D, F) or the factors' rank,
whichever is less. σ₁ ≥ σ₂ ≥ … are singular values.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaptlab import leaf, linalg, tree

__all__ = [
    "Factors",
    "Svd",
    "Update",
    "dense_update",
    "effective_rank",
    "frobenius",
    "participation",
    "singular_values",
    "singular_vectors",
    "stable_rank",
    "updates",
]


class Factors(NamedTuple):
    """ΔW = A B, with A `[*L, D, R]` and B `[*L, R, F]`."""

    a: jax.Array
    b: jax.Array


Update = Factors | jax.Array
"""A matrix, or a stack of them: its factors, or the array `[*L, D, F]`."""


class Svd(NamedTuple):
    """ΔW = U diag(σ) Vᵀ, with U `[*L, D, K]`, σ `[*L, K]` in decreasing order and Vᵀ `[*L, K, F]`."""

    u: jax.Array
    s: jax.Array
    vt: jax.Array


def updates(
    base: Any,
    params: Any,
    select: str | Sequence[str] = "layers/.*/kernel",
) -> dict[str, Update]:
    """Return `{path: ΔW}` of the selected matrices that an adaptation has changed.

    A leaf that *is* the base's is left out: an adaptation that does not touch a matrix returns it as it was.

    Args:
      base: what the adaptation was bound to; W is the array that its leaf stands for.
      params: `adaptation.bind(base, delta)`.
      select: patterns of whole `/`-joined paths.

    Raises:
      ValueError: a pattern that matches nothing, or a selected leaf that is not a matrix.
    """
    flat, bound = tree.flatten(base, leaf.is_node), tree.flatten(params, leaf.is_node)
    found = {}
    for path, chosen in tree.select(flat, select).items():
        if chosen is None or bound[path] is flat[path]:
            continue
        if len(shape := jax.eval_shape(leaf.dense, flat[path]).shape) < 2 or path.endswith(("/scale", "/bias")):
            raise ValueError(f"Updates are measured of matrices: {path!r} has shape {shape}; narrow `select`.")
        found[path] = _update(flat[path], bound[path])
    return found


def _update(w: leaf.Weight, changed: leaf.Weight) -> Update:
    sides = _side_paths(w, changed)
    if sides is None:
        return leaf.dense(changed) - leaf.dense(w)
    scaled = [(side.a, side.scale.astype(side.b.dtype)[..., None, None] * side.b) for side in sides]
    return Factors(jnp.concatenate([a for a, _ in scaled], -1), jnp.concatenate([b for _, b in scaled], -2))


def _side_paths(w: leaf.Weight, changed: leaf.Weight) -> list[leaf.LowRank] | None:
    """The low-rank nodes on top of w, or None if there is anything else."""
    w = w.w if isinstance(w, leaf.Factored) else w  # which stands for what it holds
    sides = []
    while isinstance(changed, leaf.LowRank):
        sides.append(changed)
        changed = changed.w
    return sides if sides and changed is w else None


def dense_update(update: Update) -> jax.Array:
    """Return ΔW as an array `[*L, D, F]`."""
    if isinstance(update, Factors):
        return jnp.matmul(update.a, update.b, precision=jax.lax.Precision.HIGHEST)
    return update


def singular_values(update: Update) -> jax.Array:
    """Return σ `[*L, K]`.

    Of factors, with the QR decompositions A = Q_A R_A and Bᵀ = Q_B R_B, those of ΔW = Q_A (R_A R_Bᵀ) Q_Bᵀ are those of
    the R x R matrix in the middle; where R is no less than K, that of ΔW itself is cheaper.
    """
    if not isinstance(update, Factors) or _is_wide(update):
        return linalg.singular_values(dense_update(update))
    (_, r_a), (_, r_b) = linalg.qr(update.a), linalg.qr(update.b.mT)
    core = jnp.matmul(r_a, r_b.mT, precision=jax.lax.Precision.HIGHEST)
    return linalg.singular_values(core)


def singular_vectors(update: Update) -> Svd:
    """Return the thin singular value decomposition; of factors as in `singular_values`, with U = Q_A U', V = Q_B V'."""
    if not isinstance(update, Factors) or _is_wide(update):
        return Svd(*linalg.svd(dense_update(update)))
    highest = jax.lax.Precision.HIGHEST
    (q_a, r_a), (q_b, r_b) = linalg.qr(update.a), linalg.qr(update.b.mT)
    u, s, vt = linalg.svd(jnp.matmul(r_a, r_b.mT, precision=highest))
    return Svd(jnp.matmul(q_a, u, precision=highest), s, jnp.matmul(vt, q_b.mT, precision=highest))


def _is_wide(update: Factors) -> bool:
    """Whether the factors' rank is no less than ΔW's own may be."""
    return update.a.shape[-1] >= min(update.a.shape[-2], update.b.shape[-1])


def frobenius(s: jax.Array) -> jax.Array:
    """‖ΔW‖_F = √Σσ², `[*L]` from σ `[*L, K]`."""
    return jnp.sqrt(jnp.sum(jnp.square(s), axis=-1))


def stable_rank(s: jax.Array) -> jax.Array:
    """‖ΔW‖_F² / σ₁² (Rudelson and Vershynin 2007, arXiv:math/0503442), between 1 and the rank; nan of zero.

    Args:
      s: σ, `[*L, K]`, in any order.

    >>> float(stable_rank(jnp.array([2.0, 2.0, 1.0])))
    2.25
    """
    return jnp.sum(jnp.square(_relative(s)), axis=-1)


def effective_rank(s: jax.Array) -> jax.Array:
    """exp(-Σ p ln p), p = σ / Σσ (Roy and Vetterli 2007, "The effective rank", eq. 4), between 1 and the rank.

    It is nan of zero.

    Args:
      s: σ, `[*L, K]`, in any order.

    >>> round(float(effective_rank(jnp.array([1.0, 1.0, 1.0, 0.0]))), 5)
    3.0
    """
    p = s / jnp.sum(s, axis=-1, keepdims=True)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(p, p), axis=-1))


def participation(s: jax.Array) -> jax.Array:
    """(Σσ²)² / Σσ⁴, the participation ratio of the eigenvalues σ² of ΔW ΔWᵀ: between 1 and the rank; nan of zero.

    Of the three ranks it is the least moved by many small values, but for the stable rank.

    Args:
      s: σ, `[*L, K]`, in any order.

    >>> float(participation(jnp.array([1.0, 1.0, 0.0])))
    2.0
    """
    energy = jnp.square(_relative(s))
    return jnp.square(jnp.sum(energy, axis=-1)) / jnp.sum(jnp.square(energy), axis=-1)


def _relative(s: jax.Array) -> jax.Array:
    """σ / σ₁: the powers of a small ΔW's own values are below what float32 can hold."""
    return s / jnp.max(s, axis=-1, keepdims=True)
