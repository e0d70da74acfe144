"""A stacked weight of which some layers train: the gradient of the others is not computed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adaptlab.leaf.weight import node, product

__all__ = ["TrainedLayers"]


@node
class TrainedLayers:
    """W, with a flag for every layer: whether its gradient is wanted.

    A scan over layers computes the gradients of all its slices, and only then are those dropped that nobody asked for.
    Here a layer that is not flagged skips the product xᵀ g, a third of what a training step of it costs. (FLOPs as
    `adaptlab.flops` counts them do not see that: a conditional counts as its dearer branch.)

    Attributes:
      w: `[*L, D, F]`, an array.
      wanted: bool `[*L]`.
    """

    w: jax.Array
    wanted: jax.Array

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        return _product(transpose, x, self.w, self.wanted)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        return jnp.take(self.dense(), ids, axis=0).astype(dtype)

    def dense(self) -> jax.Array:
        return self.w


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(transpose: bool, x: jax.Array, w: jax.Array, wanted: jax.Array) -> jax.Array:
    del wanted
    return product(x, w, transpose)


@_product.defjvp
def _product_jvp(transpose: bool, primals: Any, tangents: Any) -> Any:
    (x, w, wanted), (x_dot, w_dot, _) = primals, tangents
    y = _product(transpose, x, w, wanted)
    moved = lax.cond(wanted, lambda v: product(x, v, transpose), lambda v: jnp.zeros_like(y), w_dot)
    return y, _product(transpose, x_dot, w, wanted) + moved
