"""Weights that carry something along: constants beside them, or a weighted change of another kind."""

from typing import Any

import jax

from adaptlab.leaf.weight import Weight, dense, dot, node, take

__all__ = ["Blend", "Held"]


@node
class Held:
    """W, and arrays that have nothing to do with it: constants of an adaptation, kept in its prepared base.

    It stands for W alone. An adaptation takes it away when it binds, so that no model ever sees it.

    Attributes:
      w: the weight.
      arrays: any tree of arrays.
    """

    w: Weight
    arrays: Any

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        return dot(x, self.w, transpose=transpose)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        return take(self.w, ids, dtype)

    def dense(self) -> jax.Array:
        return dense(self.w)


@node
class Blend:
    """W + λ · (W' - W_0): a part of the change that turns W_0 into the node W', added to W.

    Nothing is formed: it costs a product with each of the three.

    Attributes:
      w: the weight below.
      changed: W', a node.
      start: W_0, what W' was made of.
      weight: `[*L]`, λ.
    """

    w: Weight
    changed: Weight
    start: Weight
    weight: jax.Array

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        change = dot(x, self.changed, transpose=transpose) - dot(x, self.start, transpose=transpose)
        return dot(x, self.w, transpose=transpose) + change * self.weight.astype(change.dtype)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        change = take(self.changed, ids, dtype) - take(self.start, ids, dtype)
        return take(self.w, ids, dtype) + change * self.weight.astype(dtype)

    def dense(self) -> jax.Array:
        w, change = dense(self.w), dense(self.changed) - dense(self.start)
        weight = self.weight.reshape(*self.weight.shape, *[1] * (change.ndim - self.weight.ndim))
        return w + (weight.astype(change.dtype) * change).astype(w.dtype)
