"""The decoder family of Llama (arXiv:2302.13971): RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adaptlab.models.attention import attend, attention_weights, check_attention, mask_for
from adaptlab.models.blocks import slots_of
from adaptlab.models.intermediates import KINDS, make_intermediates, record
from adaptlab.models.layers import Embed, Linear, RMSNorm, dropped, residual
from adaptlab.models.mask import Mask, prompted
from adaptlab.models.model import Model, Slot
from adaptlab.models.positions import behind_prefix, rotary, rotary_angles
from adaptlab.models.products import fan_out, split_heads
from adaptlab.models.reading import refuse_unread, slot
from adaptlab.models.stack import DTYPES, check_options, stacked, weights

__all__ = ["LlamaShape", "decoder", "llama"]


@dataclass(frozen=True)
class LlamaShape:
    """The sizes that fix a Llama: what a checkpoint's header says.

    Attributes:
      vocab_size: V.
      width: D, the residual stream.
      depth: L, the number of layers.
      heads: H, query heads.
      kv_heads: G, key/value heads; divides H.
      head_width: K.
      ffn_width: F.
      rope_base: the base of the rotary frequencies.
      norm_eps: the epsilon of RMSNorm.
      tied: whether the head is the transposed embedding.
    """

    vocab_size: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_width: int
    ffn_width: int
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = True

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}: "
                f"each key/value head serves an equal number of query heads."
            )
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width} is odd: rotary positions turn pairs.")


class _Attention(nn.Module):
    shape: LlamaShape

    @nn.compact
    def __call__(self, x_BTD: jax.Array, cos: jax.Array, sin: jax.Array, mask: Any) -> jax.Array:
        s, (B, T, _), shared = self.shape, x_BTD.shape, fan_out(x_BTD)

        def project(name: str, heads: int, axis: str) -> jax.Array:
            return split_heads(Linear(heads * s.head_width, ("embed", axis), name=name)(shared), heads, axis)

        q_BTHK = rotary(project("query", s.heads, "heads"), cos, sin)
        k_BTGK = rotary(project("key", s.kv_heads, "kv_heads"), cos, sin)
        v_BTGK = project("value", s.kv_heads, "kv_heads")
        prefix = slot(self, "prefix")
        record(self, "attention", lambda: attention_weights(q_BTHK, k_BTGK, mask, prefix))
        y_BTHK = attend(q_BTHK, k_BTGK, v_BTGK, mask, prefix)
        return Linear(s.width, ("heads", "embed"), name="out")(y_BTHK.reshape(B, T, -1))


class _FeedForward(nn.Module):
    shape: LlamaShape

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        shared = fan_out(x_BTD)
        gate_BTF = Linear(self.shape.ffn_width, ("embed", "ffn"), name="gate")(shared)
        up_BTF = Linear(self.shape.ffn_width, ("embed", "ffn"), name="up")(shared)
        return Linear(self.shape.width, ("ffn", "embed"), name="down")(nn.silu(gate_BTF) * up_BTF)


class _Layer(nn.Module):
    shape: LlamaShape
    feed_forward: Callable[..., Any]

    @nn.compact
    def __call__(self, x_BTD: jax.Array, cos: jax.Array, sin: jax.Array, mask: Any, drop: Any) -> Any:
        h_BTD = RMSNorm(self.shape.norm_eps, name="attention_norm")(x_BTD)
        y_BTD = _Attention(self.shape, name="attention")(h_BTD, cos, sin, mask)
        x_BTD += dropped(self, residual(self, "attention_adapter", y_BTD, h_BTD), drop)
        h_BTD = RMSNorm(self.shape.norm_eps, name="feed_forward_norm")(x_BTD)
        y_BTD = self.feed_forward(self.shape, name="feed_forward")(h_BTD)
        x_BTD += dropped(self, residual(self, "feed_forward_adapter", y_BTD, h_BTD), drop)
        record(self, "hidden", lambda: x_BTD)
        return x_BTD, None


class _Llama(nn.Module):
    shape: LlamaShape
    feed_forward: Callable[..., Any]
    dtype: Any
    remat: str
    unroll: int | None
    attention: str

    @nn.compact
    def __call__(self, tokens_BT: jax.Array, segments_BT: Any, positions_BT: jax.Array, drop: Any) -> jax.Array:
        s = self.shape
        embed = Embed(s.vocab_size, s.width, self.dtype, name="embed")
        mask = Mask(segments_BT, tokens_BT.shape[1], causal=True)
        positions_BT, _ = behind_prefix(self, positions_BT)
        x_BTD, mask, positions_BT, P = prompted(slot(self, "prompt"), embed(tokens_BT), mask, positions_BT)
        cos, sin = rotary_angles(positions_BT, s.head_width, s.rope_base)
        x_BTD = dropped(self, x_BTD, drop)
        record(self, "hidden", lambda: x_BTD)
        layers = stacked(_Layer, s.depth, self.remat, self.unroll)(s, self.feed_forward, name="layers")
        x_BTD, _ = layers(x_BTD, cos, sin, mask_for(self, mask, self.attention), drop)
        x_BTD = RMSNorm(s.norm_eps, name="norm")(x_BTD[:, P:])
        if s.tied:
            return embed.attend(x_BTD).astype(jnp.float32)
        return Linear(s.vocab_size, ("embed", "vocab"), name="head")(x_BTD).astype(jnp.float32)


def llama(
    shape: LlamaShape,
    *,
    dtype: str = "float32",
    remat: str = "none",
    unroll: int | None = None,
    attention: str = "auto",
) -> Model:
    """Return a Llama-family decoder.

    `apply(params, tokens_BT, *, segments=None, positions=None, dropout=None)` returns float32 logits `[B, T, V]`. Token
    t sees the tokens of its own segment up to itself. `positions` default to 0 … T-1; only differences within a segment
    matter. `dropout` is (rate, key).

    Args:
      shape: the sizes.
      dtype: the compute dtype, "float32" or "bfloat16". Parameters, norms, softmax and logits stay float32.
      remat: what the backward pass recomputes: "none" (save all), "dots" (save matrix products) or "full"
        (save layer inputs only).
      unroll: layers per iteration of the scan; None chooses by backend and depth.
      attention: "dense" computes all scores at once, "blockwise" a block at a time
        (`adaptlab.models.blockwise.blockwise_attention`); "auto" is blockwise from 2,048 tokens on. Where a mesh splits
        rows, attention is in a ring (`adaptlab.models.ring.ring_attention`).

    Raises:
      ValueError: an unknown `dtype`, `remat` or `attention`.
    """
    return decoder(shape, _FeedForward, dtype=dtype, remat=remat, unroll=unroll, attention=attention)


def decoder(
    shape: LlamaShape,
    feed_forward: Callable[..., Any],
    *,
    dtype: str,
    remat: str,
    unroll: int | None,
    attention: str = "auto",
    kinds: Sequence[str] = KINDS,
) -> Model:
    """Return a decoder with Llama's attention and a feed-forward of its own.

    Args:
      shape: the sizes.
      feed_forward: `(shape, name="feed_forward") -> module`, called with activations `[B, T, D]`.
      dtype: see `llama`.
      remat: see `llama`.
      unroll: see `llama`.
      attention: see `llama`.
      kinds: what it records (`adaptlab.models.intermediates`).
    """
    check_options(dtype, remat)
    check_attention(attention)
    module = _Llama(shape, feed_forward, DTYPES[dtype], remat, unroll, attention)
    example = jnp.zeros((1, 2), jnp.int32)

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
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        rate, key = dropout or (None, None)
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, tokens, segments, positions, rate, rngs=rngs, mutable=mutable)

    def slots() -> dict[str, Slot]:
        return slots_of(
            depth=shape.depth, width=shape.width, heads=shape.kv_heads, head_width=shape.head_width, axis="kv_heads"
        )

    return Model(init, apply, axes, slots, make_intermediates(apply, kinds))
