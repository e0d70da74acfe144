"""Random matrices that are computed where they are read: the same on every machine, and stored on none.

Each element is a hash of a seed and its index, in integers and so the same bits everywhere. Neighbours in a matrix, or
the parts of one on different devices, have nothing to wait for, and a smaller matrix is the corner of a larger one.
"""

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["hashed", "normal_at", "scrambled", "signs_at", "uniform_at", "uniform_matrix"]

_SECOND = np.uint32(0x9E3779B9)  # 2³² over the golden ratio: keeps indices of the second kind apart from the first


def scrambled(x: jax.Array) -> jax.Array:
    """Return a bijection of uint32 that leaves no trace of its argument: two rounds of shift, exclusive or, product.

    The multipliers are those of C. Wellons's search for the least bias between input and output bits ("lowbias32").
    """
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def hashed(seed: int | jax.Array, *indices: jax.Array) -> jax.Array:
    """Return uint32 random bits for a seed and indices (uint32 arrays that broadcast together)."""
    bits = scrambled(jnp.asarray(seed, jnp.uint32) + _SECOND)
    for index in indices:
        bits = scrambled(bits * np.uint32(31) + index.astype(jnp.uint32) * _SECOND + np.uint32(1))
    return bits


def uniform_at(bits: jax.Array) -> jax.Array:
    """Return float32 in the open interval (0, 1) from random bits."""
    return ((bits >> np.uint32(9)).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-23)


def signs_at(bits: jax.Array) -> jax.Array:
    """Return -1 or 1 in float32 from random bits."""
    return 1.0 - 2.0 * (bits >> np.uint32(31)).astype(jnp.float32)


def normal_at(bits: jax.Array) -> jax.Array:
    """Return standard normal float32 from random bits, by the inverse of the normal distribution."""
    return jnp.sqrt(jnp.float32(2.0)) * jax.lax.erf_inv(2.0 * uniform_at(bits) - 1.0)


def uniform_matrix(seed: int, shape: tuple[int, int], bound: float) -> jax.Array:
    """Return the corner `shape` of an endless matrix of U(-bound, bound)."""
    row = jax.lax.broadcasted_iota(jnp.uint32, shape, 0)
    column = jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
    return bound * (2.0 * uniform_at(hashed(seed, row, column)) - 1.0)
