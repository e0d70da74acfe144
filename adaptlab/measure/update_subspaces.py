"""Where an update lies: beside W's and a gradient's leading subspaces, and which singular vectors it intrudes with."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from adaptlab.measure.update import Svd, Update, dense_update, singular_vectors
from adaptlab.measure.update_relation import count_intruders, largest_cosine, subspace_similarity

__all__ = ["leading_vectors", "subspaces"]

_NEGLIGIBLE = 1e-5  # of σ₁: below, float32 has only rounding, and vectors mean nothing


def leading_vectors(w: jax.Array, k: int | None = None) -> Svd:
    """Return the k leading singular triples of `[*L, D, F]`, or all of them."""
    u, s, vt = singular_vectors(w)
    return Svd(u[..., :k], s[..., :k], vt[..., :k, :])


def subspaces(
    w: jax.Array, update: Update, base: Svd, gradient: Svd, k: int, epsilons: Sequence[float]
) -> dict[str, jax.Array]:
    """Compare the leading subspaces of ΔW with those of W and of a gradient, and count intruders.

    With φ from `subspace_similarity`, i = min(k, rank of ΔW), U the input side and V the output side:

        base_overlap_input      φ(U_i(ΔW), U_k(W))           chance_input    k / D, the mean of random subspaces
        base_overlap_output     φ(V_i(ΔW), V_k(W))           chance_output   k / F
        gradient_overlap_…      the same with the gradient's
        intruders_<ε>           how many of the k leading v(W + ΔW) have no |cosine| of ε or more to any v(W)

    Args:
      w: `[*L, D, F]`.
      update: its change.
      base: singular triples of W: of V all, of U at least k.
      gradient: at least k of the gradient's.
      k: how many singular vectors are leading, at most min(D, F).
      epsilons: the ε of intruders.

    Returns:
      `{what: [*L]}`.
    """
    own = singular_vectors(update)
    rank = jnp.clip(jnp.sum(own.s > _NEGLIGIBLE * own.s[..., :1], axis=-1), 1, k)
    found = {}
    for name, other in (("base", base), ("gradient", gradient)):
        found[f"{name}_overlap_input"] = _overlap(own.u[..., :k], other.u[..., :k], rank)
        found[f"{name}_overlap_output"] = _overlap(own.vt[..., :k, :].mT, other.vt[..., :k, :].mT, rank)
    for side, width in zip(("input", "output"), w.shape[-2:], strict=True):
        found[f"chance_{side}"] = jnp.full(w.shape[:-2], k / width)
    after = leading_vectors(w + dense_update(update), k)
    cosine = largest_cosine(after.vt, base.vt)
    return found | {f"intruders_{epsilon:g}": count_intruders(cosine, epsilon) for epsilon in epsilons}


def _overlap(own: jax.Array, other: jax.Array, rank: jax.Array) -> jax.Array:
    """φ(rank, J) `[*L]`, with another rank in each layer."""
    grid = subspace_similarity(own, other)[..., -1]
    return jnp.take_along_axis(grid, jnp.minimum(rank, grid.shape[-1])[..., None] - 1, axis=-1)[..., 0]
