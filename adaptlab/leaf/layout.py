"""In which order an array lies in memory, where a compiler chooses badly."""

import jax
from jax import lax

from adaptlab.shard import on_one_cpu

__all__ = ["as_written"]


def as_written(x: jax.Array) -> jax.Array:
    """Return x; on a single CPU as an array of its own, in memory in the order of its axes, and so is its gradient.

    XLA merges a transpose with the product that reads it, and that of a gradient with the product that makes it. On a
    CPU a product that sums over the first axis of its left side is slow (a quarter to a tenth of the speed, on one
    thread); to turn the small side, or the small result, costs less. Nor is anything computed from x shared with what
    is computed from the array that was given. Values stay the same, and so do derivatives of any order.
    """
    return lax.optimization_barrier(x) if on_one_cpu() else x
