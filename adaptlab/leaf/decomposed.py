"""A weight in two parts, the length and the direction of each of its columns."""

from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adaptlab.leaf.low_rank import LowRank
from adaptlab.leaf.weight import Weight, dense, dot, node, take

__all__ = ["Decomposed", "column_norms"]


@node
class Decomposed:
    """m ∘ V / ‖V‖_c: every column (output unit) of V scaled to the length m (DoRA, arXiv:2402.09353, eq. 5).

    V's norms are computed with every product, and V itself is never formed if it is a `LowRank`.

    Attributes:
      v: the directions, an array `[*L, D, F]` or another node.
      magnitude: m, `[*L, F]`.
      detach_norm: whether ‖V‖_c is a constant to derivatives (sec. 4.3). They are then not those of the function.
    """

    v: Weight
    magnitude: jax.Array
    detach_norm: bool = field(default=False, metadata={"static": True})

    def _gain(self, norm_F: jax.Array) -> jax.Array:
        norm_F = lax.stop_gradient(norm_F) if self.detach_norm else norm_F
        # A column of zeros has no direction, and no length to give it.
        return self.magnitude / jnp.where(norm_F > 0, norm_F, jnp.ones_like(norm_F))

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        gain_F = self._gain(column_norms(self.v)).astype(x.dtype)
        if transpose:
            return dot(x * _lifted(gain_F, x), self.v, transpose=True)
        y = dot(x, self.v)
        return y * _lifted(gain_F, y)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        rows = take(self.v, ids, dtype)
        return rows * _lifted(self._gain(column_norms(self.v)).astype(dtype), rows)

    def dense(self) -> jax.Array:
        v = dense(self.v)
        return v * self._gain(_root(jnp.sum(jnp.square(v.astype(jnp.float32)), axis=-2)))[..., None, :].astype(v.dtype)


def column_norms(v: Weight) -> jax.Array:
    """Return the Euclidean norms `[F]` of the columns of what a leaf without leading axes stands for, in float32.

    Of W + s A B they are the roots of ‖W‖² + 2s Σ_R (Wᵀ A) ∘ Bᵀ + s² Σ_R (Bᵀ Aᵀ A) ∘ Bᵀ, which takes R D F products and
    no other matrix of W's size.
    """
    return _root(_squares(v))


def _squares(v: Weight) -> jax.Array:
    if not isinstance(v, LowRank):
        return jnp.sum(jnp.square(dense(v).astype(jnp.float32)), axis=0)
    a_DR, b_RF = v.a.astype(jnp.float32), v.scale.astype(jnp.float32) * v.b.astype(jnp.float32)
    cross_RF = dot(a_DR.T, v.w)
    gram_RR = jnp.matmul(a_DR.T, a_DR, precision=lax.Precision.HIGHEST)
    side_RF = jnp.matmul(gram_RR, b_RF, precision=lax.Precision.HIGHEST)
    return _squares(v.w) + jnp.sum((2.0 * cross_RF + side_RF) * b_RF, axis=0)


def _root(squares_F: jax.Array) -> jax.Array:
    """The square root, with a derivative of zero at zero (and below it, where only rounding leads)."""
    positive = squares_F > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares_F, 1.0)), 0.0)


def _lifted(vector_F: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.expand_dims(vector_F, range(like.ndim - 1))
