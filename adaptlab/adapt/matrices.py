"""What adaptations of matrices share: which they adapt, of what shape, and how many ranks they use."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import leaf, tree
from adaptlab.config import AtMost, Interval, Traced

__all__ = ["EffectiveRank", "count_ranks", "keep_ranks", "matrix_shape", "targets"]


EffectiveRank = Annotated[Traced, Interval(1, ends="[)"), AtMost("rank")]
"""How many of a factory's `rank` are used."""


def targets(flat: dict[str, Any], select: str | Sequence[str]) -> dict[str, Any]:
    """Return those of `{path: x}` whose whole path one of the patterns matches."""
    return {path: flat[path] for path, i in tree.select(flat, select).items() if i is not None}


def matrix_shape(path: str, w: Any, method: str) -> tuple[int, ...]:
    """Return the shape `[*L, D, F]` of a selected weight.

    Raises:
      ValueError: it is not a matrix.
    """
    shape = jax.eval_shape(leaf.dense, w).shape
    if len(shape) < 2 or path.endswith(("/scale", "/bias")):
        raise ValueError(f"{method} selects {path!r} of shape {shape}, which is not a matrix; narrow `select`.")
    return shape


def keep_ranks(b: jax.Array, used: Any) -> jax.Array:
    """Return `[*L, R, F]` with zeros in all rows but the first `used`.

    Args:
      b: the factor.
      used: a number, or a sequence of one number for each index of the first axis; traced or not; None keeps all.
    """
    if used is None:
        return b
    used = jnp.asarray(used, jnp.float32)
    row_R = jnp.arange(b.shape[-2], dtype=jnp.float32).reshape(*[1] * (b.ndim - 2), -1, 1)
    return jnp.where(row_R < used.reshape(*used.shape, *[1] * (b.ndim - used.ndim)), b, jnp.zeros((), b.dtype))


def count_ranks(delta: Any, used: Any) -> int:
    """Count what is used of factors "a" `[*L, …, R]` and "b" `[*L, R, F]` when `keep_ranks` keeps `used`, not traced.

    What else is in the delta counts whole.
    """
    if used is None:
        return tree.count(delta)
    total, flat = 0, tree.flatten(delta)
    for path, x in flat.items():
        if not path.endswith(("/a", "/b")):
            total += math.prod(x.shape)
            continue
        *lead, rank, _ = flat[f"{path[:-1]}b"].shape
        kept = np.clip(np.ceil(np.asarray(used, np.float64)), 0, rank)
        kept_L = np.broadcast_to(kept.reshape((*kept.shape, *[1] * (len(lead) - kept.ndim))), lead)
        total += int(kept_L.sum()) * (math.prod(x.shape) // (math.prod(lead) * rank))
    return total
