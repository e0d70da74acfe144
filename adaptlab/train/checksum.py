"""A checksum of arrays that does not depend on how they are split: every device reads only what it holds."""

import functools
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import tree
from adaptlab.shard import fetch

__all__ = ["checksum"]

_LANES = 4  # of 32 bits each


def checksum(arrays: Any) -> str:
    """Return 256 bits, in hexadecimal: equal for trees that are equal bit by bit, on any mesh and number of hosts.

    Of an array with 32-bit words w_i (narrower elements count as one word, wider ones as several) and positions i it
    takes, for lanes k = 1 … 4,

        s_k = Σ_i  m(m(i + k φ) ⊕ w_i)   modulo 2³²,

    where φ = 2654435769 and m is a bijection that mixes bits (the finaliser of MurmurHash3). Integer sums are exact in
    any order, so the parts of an array are summed where they lie and only s is exchanged. The s of all arrays, with
    their paths, dtypes and shapes, go through SHA-256.

    A changed word always changes s. Different damages cancel with a probability of 2⁻¹²⁸: this guards against torn
    files and failing disks, not against an adversary. A meeting of all processes.
    """
    flat = dict(sorted(tree.flatten(arrays).items()))
    sums = np.asarray(fetch(_sums(list(flat.values()))))
    said = [[path, x.dtype.name, list(x.shape)] for path, x in flat.items()]
    return hashlib.sha256(json.dumps(said).encode() + sums.astype("<u4").tobytes()).hexdigest()


@jax.jit
def _sums(arrays: list[Any]) -> jax.Array:
    """`[arrays, lanes]`. What rests in the host's memory visits its device."""
    arrays = [jax.device_put(x, jax.memory.Space.Device) for x in arrays]
    return jnp.stack([_sum(x) for x in arrays]) if arrays else jnp.zeros((0, _LANES), jnp.uint32)


def _sum(x: jax.Array) -> jax.Array:
    words = _words(x)
    strides = [int(np.prod(words.shape[axis + 1 :], dtype=np.int64)) % 2**32 for axis in range(words.ndim)]
    position = functools.reduce(
        jnp.add,
        [
            jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
            for axis, stride in enumerate(strides)
        ],
        jnp.zeros(words.shape, jnp.uint32),
    )
    lanes = [_mixed(_mixed(position + jnp.uint32(0x9E3779B9 * k % 2**32)) ^ words) for k in range(1, _LANES + 1)]
    # One reduction of all lanes: XLA fuses it with what comes before. Four of them would write every lane to memory.
    zeros = [jnp.uint32(0)] * _LANES
    sums = jax.lax.reduce(lanes, zeros, lambda a, b: [x + y for x, y in zip(a, b, strict=True)], range(words.ndim))
    return jnp.stack(sums)


def _words(x: jax.Array) -> jax.Array:
    """The bits of an array as words."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    narrow = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, narrow).astype(jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> jnp.uint32(16))
