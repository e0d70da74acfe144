"""A weight that moves in a random subspace all weights share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adaptlab.leaf.random import hashed, normal_at, scrambled, signs_at
from adaptlab.leaf.weight import Weight, dense, dot, node, product, take

__all__ = ["Projected", "fastfood"]


@node
class Projected:
    """W + gain · (the part of P z that is W's), with P of `fastfood`.

    Neither P nor, for the backward pass, P z is stored: both are computed again where they are needed.

    Attributes:
      w: the weight below, an array `[*L, D, F]` or another node.
      z: `[*L, Z]`, the same for all layers and all weights.
      stream: uint32 `[*L]`, names the rows of P that belong to this matrix.
      gain: `[*L]`.
    """

    w: Weight
    z: jax.Array
    stream: jax.Array
    gain: jax.Array

    def _change(self, shape: tuple[int, int]) -> jax.Array:
        """P z's part of one matrix, without leading axes."""
        return fastfood(self.z * self.gain, self.stream, shape[0] * shape[1]).reshape(shape)

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        y = dot(x, self.w, transpose=transpose)
        shape = (y.shape[-1], x.shape[-1]) if transpose else (x.shape[-1], y.shape[-1])

        @jax.checkpoint
        def side(x: jax.Array, z: jax.Array, stream: jax.Array, gain: jax.Array) -> jax.Array:
            return product(x, Projected(None, z, stream, gain)._change(shape), transpose)

        return y + side(x, self.z, self.stream, self.gain)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        rows, columns = jax.eval_shape(dense, self.w).shape
        return take(self.w, ids, dtype) + jnp.take(self._change((rows, columns)), ids, axis=0).astype(dtype)

    def dense(self) -> jax.Array:
        w = dense(self.w)
        *lead, d, f = w.shape
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(lead) :]), (self.z, self.stream, self.gain))
        change = jax.vmap(lambda z, stream, gain: Projected(None, z, stream, gain)._change((d, f)))(*flat)
        return w + change.reshape(w.shape).astype(w.dtype)


def fastfood(z: jax.Array, stream: jax.Array, n: int) -> jax.Array:
    """Return N elements of P z for a random P whose columns have a length near √(N/Q).

    P is a stack of blocks V = H G Π H B / Q (Fastfood: Le, Sarlos and Smola 2013, eq. 7; intrinsic dimension:
    arXiv:2012.13255, sec. 3) of Q rows, Q the power of two at or above z's length: H is Hadamard's matrix, B random
    signs, G normal, and Π a permutation. Each block keeps the length of z on average. It takes no memory, as B, G and Π
    are hashes (`adaptlab.leaf.random`), and N √Q products. Π is a scrambling of indices that a key chooses, not one of
    all Q! orders alike, and the scaling S is left out, which would give rows of V the lengths of normal vectors.

    Args:
      z: `[Z]`.
      stream: uint32 scalar: names the random numbers.
      n: N.
    """
    Q = max(2, 1 << (z.shape[0] - 1).bit_length())
    K = -(-n // Q)  # blocks
    block = lax.broadcasted_iota(jnp.uint32, (K, Q), 0)
    place = lax.broadcasted_iota(jnp.uint32, (K, Q), 1)

    def draw(what: int) -> jax.Array:
        return hashed(stream + np.uint32(what), block, place)

    x_KQ = jnp.pad(z, (0, Q - z.shape[0]))[None] * signs_at(draw(0))
    x_KQ = jnp.take_along_axis(_hadamard(x_KQ), _permuted(place, hashed(stream + np.uint32(1), block), Q), axis=1)
    return _hadamard(x_KQ * normal_at(draw(2))).reshape(-1)[:n]


def _permuted(place: jax.Array, key: jax.Array, size: int) -> jax.Array:
    """A bijection of 0 … size - 1, a power of two: products with odd numbers and shifts, each of which is one."""
    bits = size.bit_length() - 1
    low, shift = np.uint32(size - 1), np.uint32(max(1, bits // 2))
    for _ in range(3):
        place = (place * (key | np.uint32(1)) + (key >> np.uint32(16))) & low
        place, key = place ^ (place >> shift), scrambled(key)
    return place.astype(jnp.int32)


def _hadamard(x_KQ: jax.Array) -> jax.Array:
    """H x / √Q for each row: the matrix is a Kronecker product of two small ones, and so are two small products."""
    Q = x_KQ.shape[1]
    bits = Q.bit_length() - 1
    first, second = _matrix(1 << (bits // 2)), _matrix(1 << (bits - bits // 2))
    x = x_KQ.reshape(-1, len(first), len(second))
    y = jnp.einsum("ab,kbc,cd->kad", first, x, second, precision=lax.Precision.HIGHEST)
    return y.reshape(-1, Q)


@functools.cache
def _matrix(size: int) -> np.ndarray:
    """Hadamard's symmetric matrix of a power of two, orthonormal."""
    both = np.arange(size)[:, None] & np.arange(size)[None]
    parity = np.array([[int(x).bit_count() & 1 for x in row] for row in both])
    return ((1 - 2 * parity) / np.sqrt(size)).astype(np.float32)
