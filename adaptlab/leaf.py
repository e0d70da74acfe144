"""A weight is anything `dot` can read.

Where the base has a kernel array, an adaptation may put a node: a registered pytree that stands for an array
without being one. Models read weights through `dot` and `take` only, so they never know how they are adapted.
Nodes nest (`LowRank` over another node), and their leading axes are batch axes: a node for a stack of L layers
becomes a node for one layer when `jax.lax.scan` slices its leaves.

Letters: L leading (layer) axes, D input width, F output width, R rank.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["LowRank", "Weight", "dense", "dot", "is_node", "take"]

Weight = Any
"""An array, or a node: anything with `dot(x, transpose)`, `take(ids, dtype)` and `dense()`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
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
        first, second = (self.b, self.a) if transpose else (self.a, self.b)
        side = _product(_product(x, first, transpose), second, transpose)
        return dot(x, self.w, transpose=transpose) + side * self.scale.astype(side.dtype)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        side = _product(jnp.take(self.a, ids, axis=0).astype(dtype), self.b, False)
        return take(self.w, ids, dtype) + side * self.scale.astype(dtype)

    def dense(self) -> jax.Array:
        w = dense(self.w)
        product = jnp.matmul(self.a, self.b, precision=lax.Precision.HIGHEST)
        return w + (self.scale[..., None, None] * product).astype(w.dtype)


_NODES = (LowRank,)


def is_node(leaf: Any) -> bool:
    """Whether a tree's leaf is a weight node (use it as `is_leaf`)."""
    return isinstance(leaf, _NODES)


def dot(x: jax.Array, leaf: Weight, *, transpose: bool = False) -> jax.Array:
    """Return x W (or x Wᵀ) for whatever the leaf is.

    Args:
      x: `[..., D]` (or `[..., F]` for the transpose). Its dtype is the compute dtype: weights are cast to
        it, products accumulate in float32.
      leaf: an array `[D, F]` or a node that stands for one.
      transpose: contract with the output axis instead, e.g. for a head tied to the embedding.

    Returns:
      `[..., F]` (or `[..., D]`), in x's dtype.
    """
    return leaf.dot(x, transpose) if is_node(leaf) else _product(x, leaf, transpose)


def take(leaf: Weight, ids: jax.Array, dtype: Any) -> jax.Array:
    """Return rows `ids` of the `[V, D]` matrix that the leaf stands for, as `[*ids.shape, D]` of `dtype`."""
    return leaf.take(ids, dtype) if is_node(leaf) else jnp.take(leaf, ids, axis=0).astype(dtype)


def dense(leaf: Weight) -> jax.Array:
    """Return the array that the leaf stands for: the reference that `dot` must agree with, and the export."""
    return leaf.dense() if is_node(leaf) else leaf


def _product(x: jax.Array, w: jax.Array, transpose: bool) -> jax.Array:
    rows = x.reshape(-1, x.shape[-1])
    contract = (((1,), (1 if transpose else 0,)), ((), ()))
    y = lax.dot_general(rows, w.astype(x.dtype), contract, preferred_element_type=jnp.float32)
    return y.astype(x.dtype).reshape(*x.shape[:-1], y.shape[-1])
