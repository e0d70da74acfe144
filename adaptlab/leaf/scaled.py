"""A weight whose rows or columns are scaled."""

from typing import Any

import jax
import jax.numpy as jnp

from adaptlab.leaf.weight import Weight, dense, dot, node, take

__all__ = ["Scaled"]


@node
class Scaled:
    """diag(input) W diag(output), never formed: input and output activations are scaled instead (arXiv:2205.05638).

    Attributes:
      w: the weight below, `[*L, D, F]`, an array or another node.
      input: `[*L, D]`, or None for ones.
      output: `[*L, F]`, or None for ones.
    """

    w: Weight
    input: jax.Array | None
    output: jax.Array | None

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        before, after = (self.output, self.input) if transpose else (self.input, self.output)
        return _times(dot(_times(x, before), self.w, transpose=transpose), after)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        rows = take(self.w, ids, dtype)
        if self.input is not None:
            rows = rows * jnp.take(self.input, ids, axis=0)[..., None].astype(dtype)
        return _times(rows, self.output)

    def dense(self) -> jax.Array:
        w = dense(self.w)
        if self.input is not None:
            w = w * self.input[..., :, None].astype(w.dtype)
        return w if self.output is None else w * self.output[..., None, :].astype(w.dtype)


def _times(x: jax.Array, factors: jax.Array | None) -> jax.Array:
    return x if factors is None else x * jnp.expand_dims(factors, range(x.ndim - 1)).astype(x.dtype)
