"""What adaptations of matrices share: which they adapt, of what shape, and how many ranks they use."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adaptlab import leaf, tree

__all__ = ["keep_ranks", "matrix_shape", "targets"]


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
    """Return `[*L, R, F]` with zeros in all rows but the first `used` (traced or not; None keeps all)."""
    if used is None:
        return b
    kept_R = jnp.arange(b.shape[-2], dtype=jnp.float32) < used
    return jnp.where(kept_R[:, None], b, jnp.zeros((), b.dtype))
