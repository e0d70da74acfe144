"""The one attention of all families: by a table of who sees whom, in blocks, or in a ring over devices.

Letters: as in `adaptlab.models.dense`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from adaptlab.models.blockwise import attend_everywhere, blockwise_attention, join
from adaptlab.models.dense import dense_attention, dense_probabilities, with_prefix
from adaptlab.models.mask import BLOCKWISE_FROM, Mask
from adaptlab.models.ring import ring_attention
from adaptlab.shard import computing_placement, constrain

__all__ = ["ATTENTIONS", "attend", "attention_weights", "check_attention", "mask_for"]

ATTENTIONS = ("auto", "dense", "blockwise")
"""How a model attends on one device: with all scores at once, in blocks, or by length (`mask.BLOCKWISE_FROM`)."""


def check_attention(how: str) -> None:
    """Raise ValueError for a way of attending that there is not."""
    if how not in ATTENTIONS:
        raise ValueError(f"attention={how!r} is not one of {list(ATTENTIONS)}.")


def mask_for(module: nn.Module, mask: Mask, how: str) -> Any:
    """Return what `attend` is to be told of a mask: itself, or its table `[B or 1, T, S]` for attention at once.

    Where rows are split over devices (`context` of the mesh), attention is always in a ring.
    """
    if module.is_initializing():
        return mask.dense()
    blockwise = how == "blockwise" or (how == "auto" and mask.length >= BLOCKWISE_FROM)
    return mask if blockwise or _devices_of_a_row() > 1 else mask.dense()


def attend(q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, mask: Any, prefix: Any = None) -> jax.Array:
    """Grouped-query attention (arXiv:2305.13245): softmax(q kᵀ / √K) v, query head h reading key head h·G//H.

    Logits and the softmax are float32. Every query must see at least one key.

    Args:
      q_BTHK: queries.
      k_BTGK: keys.
      v_BTGK: values.
      mask: see `mask_for`.
      prefix: a node with keys and values that all queries see, or None.

    Returns:
      `[B, T, H, K]` in q's dtype.
    """
    if not isinstance(mask, Mask):
        return dense_attention(q_BTHK, *with_prefix(prefix, k_BTGK, v_BTGK, mask))
    q_BTHK = constrain(q_BTHK, ("batch", "time", "heads", None))
    k_BTGK, v_BTGK = (constrain(x, ("batch", "time", "kv_heads", None)) for x in (k_BTGK, v_BTGK))
    if (placement := computing_placement()) is not None and _devices_of_a_row() > 1:
        o, log = ring_attention(q_BTHK, k_BTGK, v_BTGK, mask, placement.mesh)
    else:
        o, log = blockwise_attention(q_BTHK, k_BTGK, v_BTGK, mask)
    if prefix is not None:
        o, _ = join((o.astype(jnp.float32), log), attend_everywhere(q_BTHK, *prefix.keys_values()))
    return checkpoint_name(constrain(o.astype(q_BTHK.dtype), ("batch", "time", "heads", None)), "attended")


def attention_weights(q_BTHK: jax.Array, k_BTGK: jax.Array, mask: Any, prefix: Any = None) -> jax.Array:
    """Return the probabilities of `attend`, float32 `[B, H, T, S]`: a prefix's keys stand in front. Never in blocks."""
    mask_BTT = mask.dense() if isinstance(mask, Mask) else mask
    k_BSGK, _, mask_BTS = with_prefix(prefix, k_BTGK, k_BTGK, mask_BTT)
    return dense_probabilities(q_BTHK, k_BSGK, mask_BTS)


def _devices_of_a_row() -> int:
    placement = computing_placement()
    return 1 if placement is None else placement.mesh.shape.get("context", 1)
