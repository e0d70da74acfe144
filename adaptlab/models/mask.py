"""Who may look at whom, without the T x T table of it: what attention in blocks, or over devices, is told.

Letters: B batch, T query time, S key time, M rows of a mask (B or 1), P rows of a prompt.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["BLOCKWISE_FROM", "OUTSIDE", "Mask", "prompted", "sees"]

BLOCKWISE_FROM = 2048
"""The number of tokens from which "auto" is "blockwise": there float32 scores are 16 MiB a head and row."""

_EVERYONE = -1  # the segment of a prompt: all see it
OUTSIDE = -2
"""The segment of what only fills up a block: no one else sees it."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=("segments_BT",), meta_fields=("length", "causal"))
@dataclass(frozen=True)
class Mask:
    """Inside one's own segment, and if causal, the past and oneself.

    Attributes:
      segments_BT: int32 ids of at least 0, and -1 for a prompt's rows; None is one segment.
      length: T.
      causal: whether a token sees none that come after it.
    """

    segments_BT: Any
    length: int
    causal: bool

    def dense(self) -> jax.Array:
        """Return the table, bool `[B or 1, T, S]`."""
        places_T = jnp.arange(self.length)
        segments_MT = self.segments_MT()
        return sees(segments_MT, segments_MT, places_T, places_T, self.causal)

    def segments_MT(self) -> jax.Array:
        """Return the segments, zeros `[1, T]` if there is but one."""
        return jnp.zeros((1, self.length), jnp.int32) if self.segments_BT is None else self.segments_BT

    def prompted(self, rows: int) -> "Mask":
        """Return the mask with a prompt of P rows in front, which all see.

        A decoder's prompt sees its past; an encoder's sees itself and all tokens but those of segment 0.
        """
        segments = self.segments_BT
        if segments is not None and rows:
            segments = jnp.pad(segments, ((0, 0), (rows, 0)), constant_values=_EVERYONE)
        return replace(self, segments_BT=segments, length=self.length + rows)


def prompted(
    node: Any, x_BTD: jax.Array, mask: Mask, positions_BT: jax.Array
) -> tuple[jax.Array, Mask, jax.Array, int]:
    """Put a prompt's embeddings in front of every sequence; every later token sees all of them.

    Args:
      node: the prompt, or None.
      x_BTD: the sequence's embeddings.
      mask: who of it looks at whom.
      positions_BT: its positions.

    Returns:
      Activations, mask and positions of P + T tokens, and P: how many outputs to drop.
    """
    if node is None:
        return x_BTD, mask, positions_BT, 0
    rows_PD = node.rows().astype(x_BTD.dtype)
    (B, _, D), P = x_BTD.shape, rows_PD.shape[0]
    x_BTD = jnp.concatenate([jnp.broadcast_to(rows_PD[None], (B, P, D)), x_BTD], axis=1)
    front = jnp.broadcast_to(jnp.arange(P, dtype=positions_BT.dtype), (positions_BT.shape[0], P))
    return x_BTD, mask.prompted(P), jnp.concatenate([front, positions_BT + P], axis=1), P


def sees(query_MT: jax.Array, key_MS: jax.Array, at_T: jax.Array, at_S: jax.Array, causal: bool) -> jax.Array:
    """Return bool `[M, T, S]`: which queries see which keys, from the segments and places of both."""
    query, key = query_MT[:, :, None], key_MS[:, None, :]
    seen = (query == key) | (key == _EVERYONE) | ((query == _EVERYONE) & (key > 0))
    return seen & (at_T[None, :, None] >= at_S[None, None, :]) if causal else seen
