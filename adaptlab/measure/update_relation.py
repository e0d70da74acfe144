"""How a change ΔW lies to the weight W it changes, or to a gradient: size, angle, common subspaces, intruders.

Letters: L leading (layer) axes, D input width, F output width, K = min(D, F). Matrices are `[*L, D, F]` and act as x W:
their left singular vectors U span inputs, their right ones V outputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from adaptlab.measure.update import Factors, Svd, Update

__all__ = [
    "Relation",
    "count_intruders",
    "largest_cosine",
    "leading",
    "relation",
    "subspace_similarity",
]

_HIGHEST = jax.lax.Precision.HIGHEST


class Relation(NamedTuple):
    """How large ΔW is beside W, and how far it turns it; all `[*L]`.

    Attributes:
      relative_norm: ‖ΔW‖_F / ‖W‖_F.
      cosine: ⟨W, W + ΔW⟩_F / (‖W‖_F ‖W + ΔW‖_F).
      angle: the angle of that cosine, in degrees: of small changes the cosine has no digits left.
    """

    relative_norm: jax.Array
    cosine: jax.Array
    angle: jax.Array


def relation(w: jax.Array, update: Update) -> Relation:
    """Return the size and the angle of a change.

    With ΔW split in a part along W, of signed length l = ⟨W, ΔW⟩ / ‖W‖, and a rest across of length a = √(‖ΔW‖² - l²),
    the angle is atan2(a, ‖W‖ + l). Of factors, ⟨W, A B⟩ = ⟨Aᵀ W, B⟩ and ‖A B‖² = ⟨Aᵀ A, B Bᵀ⟩: no product is formed.

    Args:
      w: `[*L, D, F]`.
      update: its change.
    """

    def inner(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(x * y, axis=(-2, -1))

    if isinstance(update, Factors):
        a, b = update
        along = inner(jnp.matmul(a.mT, w, precision=_HIGHEST), b)
        squared = inner(jnp.matmul(a.mT, a, precision=_HIGHEST), jnp.matmul(b, b.mT, precision=_HIGHEST))
    else:
        along, squared = inner(w, update), inner(update, update)
    size = jnp.sqrt(inner(w, w))
    length = along / size
    across = jnp.sqrt(jnp.maximum(squared - jnp.square(length), 0.0))
    angle = jnp.arctan2(across, size + length)
    return Relation(jnp.sqrt(jnp.maximum(squared, 0.0)) / size, jnp.cos(angle), jnp.degrees(angle))


def subspace_similarity(u: jax.Array, v: jax.Array) -> jax.Array:
    """φ(i, j) = ‖U_iᵀ V_j‖_F² / min(i, j), where U_i are the first i columns of U (LoRA, arXiv:2106.09685, eq. 4).

    1 if the smaller subspace lies in the larger, 0 if they are orthogonal; max(i, j) / N on average if both are random
    in N dimensions.

    Args:
      u: orthonormal columns `[*L, N, I]`.
      v: orthonormal columns `[*L, N, J]`.

    Returns:
      `[*L, I, J]`, φ(i, j) at index (i - 1, j - 1).
    """
    squared = jnp.square(jnp.matmul(u.mT, v, precision=_HIGHEST))
    energy = jnp.cumsum(jnp.cumsum(squared, axis=-1), axis=-2)
    i, j = jnp.arange(1, u.shape[-1] + 1), jnp.arange(1, v.shape[-1] + 1)
    least = jnp.minimum(i[:, None], j[None, :]).astype(energy.dtype)
    return energy / least.reshape((1,) * (energy.ndim - 2) + least.shape)


def largest_cosine(after: jax.Array, before: jax.Array) -> jax.Array:
    """For each leading singular vector of W + ΔW, its largest |cosine| to any singular vector of W.

        c_j = max_i |⟨v_j(W + ΔW), v_i(W)⟩|,   j = 1 … k

    A vector with c_j < ε is an intruder dimension (arXiv:2410.21228, algorithm 1); see `count_intruders`. The vectors
    to compare are those of the output side, as in the paper: V in x W.

    Args:
      after: the k leading rows of Vᵀ of W + ΔW, `[*L, k, F]`.
      before: all rows of Vᵀ of W, `[*L, K, F]`.

    Returns:
      c `[*L, k]`.
    """
    return jnp.max(jnp.abs(jnp.matmul(after, before.mT, precision=_HIGHEST)), axis=-1)


def count_intruders(cosine: jax.Array, epsilon: float) -> jax.Array:
    """How many of the k leading singular vectors are intruder dimensions, `[*L]`: those with c_j < ε.

    Args:
      cosine: c `[*L, k]`, from `largest_cosine`.
      epsilon: ε, between 0 and 1; the paper looks at .5 most, and at all.
    """
    return jnp.sum(cosine < epsilon, axis=-1)


def leading(svd: Svd, k: jax.Array | int) -> Factors:
    """Return Σ_{i ≤ k} σ_i u_i v_iᵀ in factors, the nearest matrix of rank k (Eckart and Young 1936).

    Args:
      svd: see `singular_vectors`.
      k: may be traced, so that all ranks share a program.
    """
    kept = jnp.arange(svd.s.shape[-1]) < k
    s = jnp.where(kept.reshape((1,) * (svd.s.ndim - 1) + kept.shape), svd.s, 0.0)
    return Factors(svd.u * s[..., None, :], svd.vt)
