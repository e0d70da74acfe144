"""A weight with a low-rank side path."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adaptlab.leaf.layout import as_written
from adaptlab.leaf.weight import Weight, dense, dot, node, product, take

__all__ = ["Factored", "LowRank"]


@node
class LowRank:
    """W + scale · A B, never formed (LoRA, arXiv:2106.09685, eq. 3, with A and B in input-to-output order).

    Attributes:
      w: the weight below, an array `[*L, D, F]` or another node.
      a: `[*L, D, R]`.
      b: `[*L, R, F]`.
      scale: `[*L]`, alpha/R in LoRA's notation.
    """

    w: Weight
    a: jax.Array
    b: jax.Array
    scale: jax.Array

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        a_RD = as_written(jnp.swapaxes(self.a, -1, -2))  # whose gradient is a product that a CPU is fast at
        first, second = (self.b, a_RD) if transpose else (a_RD, self.b)
        side = product(product(x, first, transpose=True), second)
        return dot(x, self.w, transpose=transpose) + side * self.scale.astype(side.dtype)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        side = product(jnp.take(self.a, ids, axis=0).astype(dtype), self.b)
        return take(self.w, ids, dtype) + side * self.scale.astype(dtype)

    def dense(self) -> jax.Array:
        w = dense(self.w)
        product = jnp.matmul(self.a, self.b, precision=lax.Precision.HIGHEST)
        return w + (self.scale[..., None, None] * product).astype(w.dtype)


@node
class Factored:
    """W, with factors A B of a part of it at hand: it stands for W alone, and an adaptation reads the factors.

    Attributes:
      w: the weight, an array `[*L, D, F]` or another node.
      a: `[*L, D, R]`.
      b: `[*L, R, F]`.
    """

    w: Weight
    a: jax.Array
    b: jax.Array

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        return dot(x, self.w, transpose=transpose)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        return take(self.w, ids, dtype)

    def dense(self) -> jax.Array:
        return dense(self.w)
