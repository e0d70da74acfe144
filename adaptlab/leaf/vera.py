"""A weight with a random low-rank side path of which only two vectors are its own."""

from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adaptlab.leaf.random import uniform_matrix
from adaptlab.leaf.weight import Weight, dense, dot, node, product, take

__all__ = ["VectorScaled"]


@node
class VectorScaled:
    """W + A diag(d) B diag(b) with random A and B that all layers share (VeRA, arXiv:2310.11454, eq. 2).

    A and B are computed where they are used and never stored; one layer's are the corners of endless random matrices.

    Attributes:
      w: the weight below, an array `[*L, D, F]` or another node.
      d: `[*L, R]`.
      b: `[*L, F]`.
      seed: of A, and seed + 1 of B.
      bounds: of A's and B's uniform elements.
    """

    w: Weight
    d: jax.Array
    b: jax.Array
    seed: int = field(metadata={"static": True})
    bounds: tuple[float, float] = field(metadata={"static": True})

    def _factors(self, width: int) -> tuple[jax.Array, jax.Array]:
        """A `[D, R]` and B `[R, F]`. B is drawn as `[F, R]`, so that it too grows with its width."""
        rank, f = self.d.shape[-1], self.b.shape[-1]
        a_DR = uniform_matrix(self.seed, (width, rank), self.bounds[0])
        return a_DR, uniform_matrix(self.seed + 1, (f, rank), self.bounds[1]).T

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        y = dot(x, self.w, transpose=transpose)
        a_DR, b_RF = self._factors(y.shape[-1] if transpose else x.shape[-1])
        d, b = (jnp.expand_dims(v.astype(x.dtype), range(x.ndim - 1)) for v in (self.d, self.b))
        if transpose:
            return y + product(product(x * b, b_RF, True) * d, a_DR, True)
        return y + product(product(x, a_DR) * d, b_RF) * b

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        rows = jax.eval_shape(dense, self.w).shape[-2]
        a_DR, b_RF = self._factors(rows)
        side = jnp.take(a_DR, ids, axis=0).astype(dtype)
        d, b = (jnp.expand_dims(v.astype(dtype), range(side.ndim - 1)) for v in (self.d, self.b))
        return take(self.w, ids, dtype) + product(side * d, b_RF) * b

    def dense(self) -> jax.Array:
        w = dense(self.w)
        a_DR, b_RF = self._factors(w.shape[-2])
        side = jnp.einsum("dr,...r,rf,...f->...df", a_DR, self.d, b_RF, self.b, precision=lax.Precision.HIGHEST)
        return w + side.astype(w.dtype)
