"""A weight with one low-rank side path per row of the batch."""

from typing import Any

import jax
import jax.numpy as jnp

from adaptlab.leaf.weight import Weight, dot, node, take

__all__ = ["Choice"]


@node
class Choice:
    """W + s_n A_n B_n with n = ids[i] for row i of the batch: several adapters serve one batch.

    W is read once for all rows; of the N side paths each row computes its own alone, from factors gathered by its id,
    2 T R (D + F) operations for its T tokens (and B R (D + F) numbers gathered).

    Attributes:
      w: the weight below, an array `[*L, D, F]` or another node.
      a: `[*L, N, D, R]`.
      b: `[*L, N, R, F]`, scales included.
      ids: int32 `[*L, B]`: a stack's layers all have the same.
    """

    w: Weight
    a: jax.Array
    b: jax.Array
    ids: jax.Array

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        first, second = (self.b, self.a) if transpose else (self.a, self.b)
        rows = x.reshape(self._rows(x), -1, x.shape[-1])
        for factor in (first, second):
            own = jnp.take(factor, self.ids, axis=0).astype(x.dtype)
            form = "btr,bfr->btf" if transpose else "btr,brf->btf"
            rows = jnp.einsum(form, rows, own, preferred_element_type=jnp.float32).astype(x.dtype)
        return dot(x, self.w, transpose=transpose) + rows.reshape(*x.shape[:-1], -1)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        """Rows of an embedding, `ids` `[B, …]`: only the chosen rows of A are gathered."""
        rows = ids.reshape(self._rows(ids), -1)
        a = self.a[self.ids[:, None], rows].astype(dtype)
        side = jnp.einsum("btr,brd->btd", a, jnp.take(self.b, self.ids, axis=0).astype(dtype))
        return take(self.w, ids, dtype) + side.reshape(*ids.shape, -1)

    def dense(self) -> jax.Array:
        raise ValueError(
            f"A Choice among {self.a.shape[-3]} adapters stands for no one matrix; bind one adapter to merge it."
        )

    def _rows(self, x: jax.Array) -> int:
        if x.shape[0] != self.ids.shape[0]:
            raise ValueError(
                f"A batch of {x.shape[0]} rows and the adapters of {self.ids.shape[0]}: give one id for each row."
            )
        return x.shape[0]
