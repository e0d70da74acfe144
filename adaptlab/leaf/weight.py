"""A weight is anything `dot` can read.

Where the base has a kernel array, an adaptation may put a node: a registered pytree that stands for an array
without being one. Models read weights through `dot` and `take` only, so they never know how they are adapted.
Nodes nest (`LowRank` over another node), and their leading axes are batch axes: a node for a stack of L layers
becomes a node for one layer when `jax.lax.scan` slices its leaves.

Letters: L leading (layer) axes, D input width, F output width, R rank.
"""

from dataclasses import dataclass
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["Weight", "dense", "dot", "is_node", "node", "product", "take"]

Weight = Any
"""An array, or a node: anything with `dot(x, transpose)`, `take(ids, dtype)` and `dense()`."""


_T = TypeVar("_T")
_NODES: set[type] = set()


@dataclass_transform(frozen_default=True)
def node(cls: type[_T]) -> type[_T]:
    """Make a class with annotated attributes a weight node: a frozen dataclass that is a pytree.

    An attribute that is not an array (a name, a size) is `dataclasses.field(metadata={"static": True})`.
    """
    made = jax.tree_util.register_dataclass(dataclass(frozen=True)(cls))
    _NODES.add(made)
    return made


def is_node(leaf: Any) -> bool:
    """Whether a tree's leaf is a weight node (use it as `is_leaf`)."""
    return type(leaf) in _NODES


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
    return leaf.dot(x, transpose) if is_node(leaf) else product(x, leaf, transpose)


def take(leaf: Weight, ids: jax.Array, dtype: Any) -> jax.Array:
    """Return rows `ids` of the `[V, D]` matrix that the leaf stands for, as `[*ids.shape, D]` of `dtype`."""
    return leaf.take(ids, dtype) if is_node(leaf) else jnp.take(leaf, ids, axis=0).astype(dtype)


def dense(leaf: Weight) -> jax.Array:
    """Return the array that the leaf stands for: the reference that `dot` must agree with, and the export."""
    return leaf.dense() if is_node(leaf) else leaf


def product(x: jax.Array, w: jax.Array, transpose: bool = False) -> jax.Array:
    """Return x W (or x Wᵀ) for an array W, cast to x's dtype, accumulated in float32, in x's dtype."""
    rows = x.reshape(-1, x.shape[-1])
    contract = (((1,), (1 if transpose else 0,)), ((), ()))
    y = lax.dot_general(rows, w.astype(x.dtype), contract, preferred_element_type=jnp.float32)
    return y.astype(x.dtype).reshape(*x.shape[:-1], y.shape[-1])
