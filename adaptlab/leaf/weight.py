"""A weight is anything `dot` can read.

Where the base has a kernel array, an adaptation may put a node: a registered pytree that stands for an array
without being one. Models read weights through `dot` and `take` only, so they never know how they are adapted.
Nodes nest (`LowRank` over another node), and their leading axes are batch axes: a node for a stack of L layers
becomes a node for one layer when `jax.lax.scan` slices its leaves.

Letters: L leading (layer) axes, D input width, F output width, R rank.
"""

import functools
from dataclasses import dataclass
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from adaptlab.leaf.layout import as_written
from adaptlab.shard import on_one_cpu

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
    multiply = _with_turned_gradient if on_one_cpu() and w.shape[0] > w.shape[1] else _multiply
    y = multiply(rows, w.astype(x.dtype), transpose)
    return y.astype(x.dtype).reshape(*x.shape[:-1], y.shape[-1])


def _multiply(rows: jax.Array, w: jax.Array, transpose: bool) -> jax.Array:
    contract = (((1,), (1 if transpose else 0,)), ((), ()))
    return lax.dot_general(rows, w, contract, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _with_turned_gradient(rows: jax.Array, w: jax.Array, transpose: bool) -> jax.Array:
    """`_multiply`, whose gradient by a w with more rows than columns is computed as its transpose.

    That gradient is a product that sums over the first axis of both sides, and on a CPU the wider its left side, the
    slower it is: `[4096, 192]` from 512 rows takes twice the time of `[192, 4096]`. Values and derivatives of any order
    stay the same.
    """
    return _multiply(rows, w, transpose)


def _turned_jvp(transpose: bool, primals: Any, tangents: Any) -> tuple[jax.Array, Any]:
    """d(x W) = dx W + x dW, each only where there is a change: a frozen W costs nothing."""
    (rows, w), changes = primals, tangents
    y = _multiply(rows, w, transpose)
    d_rows, d_w = (None if isinstance(d, SymbolicZero) else d for d in changes)
    parts = [] if d_rows is None else [_multiply(d_rows, w, transpose)]
    parts += [] if d_w is None else [_multiply(rows, as_written(d_w.T), not transpose)]
    return y, sum(parts[1:], start=parts[0])


_with_turned_gradient.defjvp(_turned_jvp, symbolic_zeros=True)
