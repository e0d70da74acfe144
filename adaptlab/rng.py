"""Keys have names: a new consumer of randomness never shifts an old stream.

key(seed, stream, step) = fold_in(fold_in(PRNGKey(seed), hash32(stream)), step)
"""

import hashlib

import jax
import numpy as np
from jax.typing import ArrayLike

__all__ = ["generator_for", "key_for", "stream_id"]


def stream_id(stream: str) -> int:
    """The first 32 bits of the stream name's SHA-256: equal on every host and Python."""
    return int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], "little")


def key_for(seed: ArrayLike, stream: str, step: ArrayLike = 0) -> jax.Array:
    """Return the JAX key of a named stream at one step.

    Args:
      seed: the run's seed; may be traced, so a sweep's seeds share one program.
      stream: the consumer's name, e.g. `"init"` or `"dropout"`.
      step: the step, or any other counter of the consumer; may be traced.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream_id(stream)), step)


def generator_for(seed: int, stream: str, step: int = 0) -> np.random.Generator:
    """Return the NumPy generator of a named stream: `key_for` for code that runs on the host."""
    return np.random.default_rng(np.random.SeedSequence([seed, stream_id(stream), step]))
