"""Products with 4-bit weights whose columns are never put in order: how a TPU reads them.

A byte has two neighbouring columns of a row. To interleave what its halves stand for is most of the work there (vectors
of registers are shuffled), far more than the product itself. So the columns stay in two halves, of even and of odd
places, and the other operand of the product is put in the same order, or its result put back: activations are shuffled
in place of weights, once and in 16 bits. The weights are the very numbers of `rows()`, cast to the compute dtype; only
the order in which a product sums them differs.

Letters: T tokens, R rows, C columns, N blocks in a row.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adaptlab.shard import computing_placement

__all__ = ["halves", "pay", "product"]


def pay(dtype: Any) -> bool:
    """Whether halves are worth it: on a TPU, in 16 bits. In float32 the order of summation is the same everywhere.

    Asked while tracing, of the device that will compute: it need not be of the machine that traces.
    """
    placement = computing_placement()
    platform = jax.default_backend() if placement is None else placement.mesh.devices.flat[0].platform
    return platform == "tpu" and jnp.dtype(dtype).itemsize == 2


def halves(codes: jax.Array, blocks: int, decode: Callable[[jax.Array], jax.Array], dtype: Any) -> jax.Array:
    """Decode packed codes to their even and their odd columns.

    Args:
      codes: uint8 `[R, C/2]`, as of `codes.pack`.
      blocks: N; a byte belongs to one block.
      decode: from numbers 0 … 15, int32 `[R, N, C/2N]`, to what they stand for, float32 of that shape.
      dtype: of the result.

    Returns:
      `[2, R, C/2]`.
    """
    # In blocks and behind a barrier, so that scales are broadcast as they are used: the compiler would otherwise move
    # the reshape in front of the decoding, and write the scales of all columns to memory.
    packed = lax.optimization_barrier(codes.reshape(codes.shape[0], blocks, -1)).astype(jnp.int32)
    return jnp.stack([decode(half).astype(dtype).reshape(codes.shape) for half in (packed >> 4, packed & 15)])


def product(x: jax.Array, w_2RC: jax.Array, transpose: bool) -> jax.Array:
    """Return x W (or x Wᵀ) for rows W `[R, C]` in halves, as `adaptlab.leaf.weight.product` does.

    Args:
      x: `[..., R]`, or `[..., C]` for the transpose.
      w_2RC: of `halves`, `[2, R, C/2]`.
      transpose: sum over columns.
    """
    x_TD = x.reshape(-1, x.shape[-1])
    if transpose:
        even_odd_2TC = jnp.moveaxis(x_TD.reshape(x_TD.shape[0], -1, 2), 2, 0)
        y = lax.dot_general(even_odd_2TC, w_2RC, (((0, 2), (0, 2)), ((), ())), preferred_element_type=jnp.float32)
    else:
        y_T2C = lax.dot_general(x_TD, w_2RC, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        y = jnp.swapaxes(y_T2C.astype(x.dtype), 1, 2)
    return y.astype(x.dtype).reshape(*x.shape[:-1], -1)
