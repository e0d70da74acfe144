"""The decoder family of GPT-2 (Radford et al. 2019): learned positions, layer norm before a sub-layer, a tied head."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adaptlab.models.attention import check_attention, mask_for
from adaptlab.models.blocks import FeedForward, SelfAttention, check_sizes, slots_of
from adaptlab.models.intermediates import make_intermediates, record
from adaptlab.models.layers import Embed, LayerNorm, dropped, residual
from adaptlab.models.mask import Mask, prompted
from adaptlab.models.model import Model, Slot
from adaptlab.models.positions import behind_prefix, fitting
from adaptlab.models.reading import refuse_unread, slot
from adaptlab.models.stack import DTYPES, check_options, stacked, weights

__all__ = ["GPT2Shape", "gpt2"]


@dataclass(frozen=True)
class GPT2Shape:
    """The sizes that fix a GPT-2: what a checkpoint's config says.

    Attributes:
      vocab_size: V.
      width: D, the residual stream.
      depth: L, the number of layers.
      heads: H; divides D, and a head is D / H wide.
      ffn_width: F.
      context: how many positions have an embedding.
      norm_eps: the epsilon of the layer norms.
      activation: between the two matrices of a feed-forward, see `adaptlab.models.layers.ACTIVATIONS`.
    """

    vocab_size: int
    width: int
    depth: int
    heads: int
    ffn_width: int
    context: int
    norm_eps: float = 1e-5
    activation: str = "gelu_new"

    def __post_init__(self) -> None:
        check_sizes(self.width, self.heads, self.activation)


class _Layer(nn.Module):
    shape: GPT2Shape

    @nn.compact
    def __call__(self, x_BTD: jax.Array, mask: Any, drop: Any) -> Any:
        h_BTD = LayerNorm(self.shape.norm_eps, name="attention_norm")(x_BTD)
        y_BTD = SelfAttention(self.shape.heads, name="attention")(h_BTD, mask)
        x_BTD += dropped(self, residual(self, "attention_adapter", y_BTD, h_BTD), drop)
        h_BTD = LayerNorm(self.shape.norm_eps, name="feed_forward_norm")(x_BTD)
        y_BTD = FeedForward(self.shape.ffn_width, self.shape.activation, name="feed_forward")(h_BTD)
        x_BTD += dropped(self, residual(self, "feed_forward_adapter", y_BTD, h_BTD), drop)
        record(self, "hidden", lambda: x_BTD)
        return x_BTD, None


class _GPT2(nn.Module):
    shape: GPT2Shape
    dtype: Any
    remat: str
    unroll: int | None
    attention: str

    @nn.compact
    def __call__(self, tokens_BT: jax.Array, segments_BT: Any, positions_BT: jax.Array, drop: Any) -> jax.Array:
        s = self.shape
        embed = Embed(s.vocab_size, s.width, self.dtype, name="embed")
        mask = Mask(segments_BT, tokens_BT.shape[1], causal=True)
        positions_BT, before = behind_prefix(self, positions_BT)
        x_BTD, mask, positions_BT, P = prompted(slot(self, "prompt"), embed(tokens_BT), mask, positions_BT)
        fitting(before + x_BTD.shape[1], s.context)
        x_BTD += Embed(s.context, s.width, self.dtype, rows=None, name="position_embed")(positions_BT)
        x_BTD = dropped(self, x_BTD, drop)
        record(self, "hidden", lambda: x_BTD)
        layers = stacked(_Layer, s.depth, self.remat, self.unroll)(s, name="layers")
        x_BTD, _ = layers(x_BTD, mask_for(self, mask, self.attention), drop)
        return embed.attend(LayerNorm(s.norm_eps, name="norm")(x_BTD[:, P:])).astype(jnp.float32)


def gpt2(
    shape: GPT2Shape,
    *,
    dtype: str = "float32",
    remat: str = "none",
    unroll: int | None = None,
    attention: str = "auto",
) -> Model:
    """Return a GPT-2 decoder.

    `apply(params, tokens_BT, *, segments=None, positions=None, dropout=None)` returns float32 logits `[B, T, V]`. Token
    t sees the tokens of its own segment up to itself. `positions` default to 0 … T-1; those of packed rows start anew
    in each segment. `dropout` is (rate, key).

    Args:
      shape: the sizes.
      dtype: the compute dtype, "float32" or "bfloat16". Parameters, norms, softmax and logits stay float32.
      remat: what the backward pass recomputes, see `adaptlab.models.llama`.
      unroll: layers per iteration of the scan; None chooses by backend and depth.
      attention: all scores at once or in blocks, see `adaptlab.models.llama`.

    Raises:
      ValueError: an unknown `dtype`, `remat` or `attention`; when applied, rows longer than the context.
    """
    check_options(dtype, remat)
    check_attention(attention)
    module = _GPT2(shape, DTYPES[dtype], remat, unroll, attention)
    example = jnp.zeros((1, min(2, shape.context)), jnp.int32)
    init, axes = weights(module, example, None, example, None)

    def apply(
        params: Any,
        tokens: jax.Array,
        *,
        segments: Any = None,
        positions: Any = None,
        dropout: Any = None,
        mutable: Any = False,
    ) -> Any:
        refuse_unread(params, axes(), slots())
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        rate, key = dropout or (None, None)
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, tokens, segments, positions, rate, rngs=rngs, mutable=mutable)

    def slots() -> dict[str, Slot]:
        head_width = shape.width // shape.heads
        return slots_of(depth=shape.depth, width=shape.width, heads=shape.heads, head_width=head_width)

    return Model(init, apply, axes, slots, make_intermediates(apply))
