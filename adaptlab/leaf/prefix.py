"""Nodes that hold what a model puts in front of a sequence: what stands at its "prefix" and "prompt" slots."""

import jax

from adaptlab.leaf.adapters import refuse_merging
from adaptlab.leaf.weight import node

__all__ = ["Prefix", "Prompt"]


@node
class Prefix:
    """Keys and values that every query sees (prefix tuning, arXiv:2101.00190, eq. 3).

    Letters: L layers, P prefix length, G key/value heads, K head width.

    Attributes:
      keys: `[*L, P, G, K]`.
      values: `[*L, P, G, K]`.
    """

    keys: jax.Array
    values: jax.Array

    def keys_values(self) -> tuple[jax.Array, jax.Array]:
        return self.keys, self.values

    def dense(self) -> jax.Array:
        refuse_merging(self)


@node
class Prompt:
    """Embeddings in front of every sequence (prompt tuning, arXiv:2104.08691).

    Attributes:
      embeddings: `[P, D]`.
    """

    embeddings: jax.Array

    def rows(self) -> jax.Array:
        return self.embeddings

    def dense(self) -> jax.Array:
        refuse_merging(self)
