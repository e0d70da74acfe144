"""An embedding table of which some rows are others."""

from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp

from adaptlab.leaf.weight import Weight, dense, dot, node, product, take

__all__ = ["Rows"]


@node
class Rows:
    """The table W `[V, D]` with rows of its own at some ids (textual inversion, arXiv:2208.01618).

    Ids from V on lengthen the table, and with it the logits of a head that is the table.

    Attributes:
      w: the table below, an array or another node.
      rows: `[N, D]`.
      ids: N different ids; those from V on are V, V + 1, … without a gap.
    """

    w: Weight
    rows: jax.Array
    ids: tuple[int, ...] = field(metadata={"static": True})

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        ids, size = jnp.asarray(self.ids), self._size()
        if transpose:
            y = _lengthened(dot(x, self.w, transpose=True), x.ndim - 1, self._added())
            return y.at[..., ids].set(product(x, self.rows, transpose=True))
        others = x.at[..., ids].set(jnp.zeros((), x.dtype))[..., :size]
        return dot(others, self.w) + product(x[..., ids], self.rows)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        same = ids[..., None] == jnp.expand_dims(jnp.asarray(self.ids, ids.dtype), range(ids.ndim))
        own = jnp.take(self.rows, jnp.argmax(same, axis=-1), axis=0).astype(dtype)
        # What stands below an id beyond the table is not used: any row will do.
        below = take(self.w, jnp.where(ids < self._size(), ids, 0), dtype)
        return jnp.where(jnp.any(same, axis=-1)[..., None], own, below)

    def dense(self) -> jax.Array:
        w = _lengthened(dense(self.w), 0, self._added())
        return w.at[jnp.asarray(self.ids)].set(self.rows.astype(w.dtype))

    def _size(self) -> int:
        return jax.eval_shape(dense, self.w).shape[0]

    def _added(self) -> int:
        return max(0, max(self.ids) + 1 - self._size())


def _lengthened(x: jax.Array, axis: int, by: int) -> jax.Array:
    return jnp.pad(x, [(0, by if i == axis else 0) for i in range(x.ndim)]) if by else x
