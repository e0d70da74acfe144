"""Weights with an update of their own shape, dense or at a few places."""

import math
from typing import Any

import jax

from adaptlab.leaf.weight import Weight, dense, dot, node, product, take

__all__ = ["Added", "SparseDelta"]


@node
class Added:
    """W + Δ for a weight below that is a node itself, so that the sum is not formed.

    Attributes:
      w: the weight below.
      delta: `[*L, D, F]`.
    """

    w: Weight
    delta: jax.Array

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        return dot(x, self.w, transpose=transpose) + product(x, self.delta, transpose)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        return take(self.w, ids, dtype) + take(self.delta, ids, dtype)

    def dense(self) -> jax.Array:
        w = dense(self.w)
        return w + self.delta.astype(w.dtype)


@node
class SparseDelta:
    """W plus values at a few places of its last two axes (or of its only one, for a vector).

    Every slice of the leading axes has as many places, so that a stack of layers is sliced with them; places that
    are not used hold the value zero. The sum is formed where it is read: it costs a copy of one layer's W.

    Attributes:
      w: the weight below.
      indices: int32 `[*L, K]`, places in the flattened slice, none of them twice.
      values: `[*L, K]`.
    """

    w: Weight
    indices: jax.Array
    values: jax.Array

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        return product(x, self.dense(), transpose)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        return take(self.dense(), ids, dtype)

    def dense(self) -> jax.Array:
        w, (*lead, places) = dense(self.w), self.indices.shape
        rows = w.reshape(math.prod(lead), -1)
        at, values = self.indices.reshape(-1, places), self.values.reshape(-1, places)
        summed = jax.vmap(lambda row, i, v: row.at[i].add(v.astype(row.dtype)))(rows, at, values)
        return summed.reshape(w.shape)
