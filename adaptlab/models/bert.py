"""The encoder family of BERT (arXiv:1810.04805): learned positions, token types, layer norm after each sub-layer."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from adaptlab.models.attention import check_attention, mask_for
from adaptlab.models.blocks import FeedForward, SelfAttention, check_sizes, slots_of
from adaptlab.models.intermediates import make_intermediates, record
from adaptlab.models.layers import Embed, LayerNorm, Linear, dropped, residual
from adaptlab.models.mask import Mask, prompted
from adaptlab.models.model import Model, Slot
from adaptlab.models.positions import behind_prefix, fitting
from adaptlab.models.reading import on_many, refuse_unread, slot
from adaptlab.models.stack import DTYPES, check_options, stacked, weights

__all__ = ["POOLINGS", "BertShape", "bert", "bert_classifier"]

POOLINGS = ("cls", "mean")
"""How a text becomes one vector: BERT's own pooler over the first token, or the mean over all tokens."""


@dataclass(frozen=True)
class BertShape:
    """The sizes that fix a BERT: what a checkpoint's config says.

    Attributes:
      vocab_size: V.
      width: D, the residual stream.
      depth: L, the number of layers.
      heads: H; divides D, and a head is D / H wide.
      ffn_width: F.
      context: how many positions have an embedding.
      types: how many token types have one.
      norm_eps: the epsilon of the layer norms.
      activation: between the two matrices of a feed-forward, see `adaptlab.models.layers.ACTIVATIONS`.
    """

    vocab_size: int
    width: int
    depth: int
    heads: int
    ffn_width: int
    context: int
    types: int = 2
    norm_eps: float = 1e-12
    activation: str = "gelu"

    def __post_init__(self) -> None:
        check_sizes(self.width, self.heads, self.activation)


class _Layer(nn.Module):
    """One layer; with `only`, of that one token: all others are read by its attention alone."""

    shape: BertShape
    only: int | None = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array, mask: Any, drop: Any) -> Any:
        asking = None if self.only is None else x_BTD[:, self.only : self.only + 1]
        seen = mask if self.only is None else mask[:, self.only : self.only + 1]
        y_BTD = SelfAttention(self.shape.heads, name="attention")(x_BTD, seen, asking)
        x_BTD = x_BTD if asking is None else asking
        y_BTD = dropped(self, residual(self, "attention_adapter", y_BTD, x_BTD), drop)
        x_BTD = LayerNorm(self.shape.norm_eps, name="attention_norm")(x_BTD + y_BTD)
        y_BTD = FeedForward(self.shape.ffn_width, self.shape.activation, name="feed_forward")(x_BTD)
        y_BTD = dropped(self, residual(self, "feed_forward_adapter", y_BTD, x_BTD), drop)
        x_BTD = LayerNorm(self.shape.norm_eps, name="feed_forward_norm")(x_BTD + y_BTD)
        record(self, "hidden", lambda: x_BTD)
        return x_BTD, None


class _Bert(nn.Module):
    shape: BertShape
    pooling: str | None
    classes: int | None
    dtype: Any
    remat: str
    unroll: int | None
    attention: str

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, segments_BT: Any, positions_BT: jax.Array, types_BT: jax.Array, drop: Any
    ) -> jax.Array:
        s = self.shape
        real_BT = jnp.ones((1, tokens_BT.shape[1]), bool) if segments_BT is None else segments_BT > 0
        mask = Mask(segments_BT, tokens_BT.shape[1], causal=False)
        x_BTD = Embed(s.vocab_size, s.width, self.dtype, name="embed")(tokens_BT)
        node = slot(self, "prompt")
        positions_BT, before = behind_prefix(self, positions_BT)
        x_BTD, mask, positions_BT, P = prompted(node, x_BTD, mask, positions_BT)
        fitting(before + x_BTD.shape[1], s.context)
        x_BTD += Embed(s.context, s.width, self.dtype, rows=None, name="position_embed")(positions_BT)
        types_BT = jnp.pad(types_BT, ((0, 0), (P, 0)))
        x_BTD += Embed(s.types, s.width, self.dtype, rows=None, name="type_embed")(types_BT)
        x_BTD = dropped(self, LayerNorm(s.norm_eps, name="embed_norm")(x_BTD), drop)
        record(self, "hidden", lambda: x_BTD)
        table = mask_for(self, mask, self.attention)
        # Pooled by its first token, a text needs no other of the last layer. (Dropout draws for all tokens at once, and
        # devices may have a part of them each.)
        first = self.pooling == "cls" and drop is None and not isinstance(table, Mask) and not on_many()
        layers = stacked(_Layer, s.depth, self.remat, self.unroll)(s, name="layers", last=(s, P) if first else None)
        x_BTD, _ = layers(x_BTD, table, drop)
        return self._head(x_BTD[:, P if x_BTD.shape[1] > 1 else 0 :], real_BT, drop).astype(jnp.float32)

    def _head(self, x_BTD: jax.Array, real_BT: jax.Array, drop: Any) -> jax.Array:
        if self.pooling is None:
            return x_BTD
        if self.pooling == "mean":
            weight_BT1 = jnp.broadcast_to(real_BT, x_BTD.shape[:2]).astype(jnp.float32)[:, :, None]
            # A row of padding alone, which fills up a batch, has a mean of zero.
            count_B1 = jnp.maximum(jnp.sum(weight_BT1, axis=1), 1.0)
            x_BD = (jnp.sum(x_BTD.astype(jnp.float32) * weight_BT1, axis=1) / count_B1).astype(self.dtype)
        else:
            x_BD = jnp.tanh(Linear(self.shape.width, ("embed", None), use_bias=True, name="pooler")(x_BTD[:, 0]))
        if self.classes is None:
            return x_BD
        return Linear(self.classes, ("embed", None), use_bias=True, name="classifier")(dropped(self, x_BD, drop))


def bert(
    shape: BertShape,
    *,
    pooling: Literal["cls", "mean"] | None = None,
    dtype: str = "float32",
    remat: str = "none",
    unroll: int | None = None,
    attention: str = "auto",
) -> Model:
    """Return a BERT encoder.

    `apply(params, tokens_BT, *, segments=None, positions=None, types=None, dropout=None)` returns float32: the last
    layer's activations `[B, T, D]`, or with `pooling` one vector `[B, D]` a row. A token sees its own segment;
    segment 0 is padding. `positions` default to 0 … T-1, `types` to 0. `dropout` is (rate, key).

    A row may hold several segments, unless it is pooled or has a prompt bound: both see all of a row that is not
    padding.

    Args:
      shape: the sizes.
      pooling: None, "cls": tanh(W h₀ + b) of the first token's h₀ (arXiv:1810.04805, sec. 4.1), or "mean": that of the
        tokens that are not padding (arXiv:1908.10084, sec. 3).
      dtype: the compute dtype, "float32" or "bfloat16". Parameters, norms, softmax and outputs stay float32.
      remat: what the backward pass recomputes, see `adaptlab.models.llama`.
      unroll: layers per iteration of the scan; None chooses by backend and depth.
      attention: all scores at once or in blocks, see `adaptlab.models.llama`.

    Raises:
      ValueError: an unknown `pooling`, `dtype`, `remat` or `attention`.
    """
    return _model(shape, pooling, None, dtype, remat, unroll, attention)


def bert_classifier(
    shape: BertShape,
    *,
    classes: int,
    pooling: Literal["cls", "mean"] = "cls",
    dtype: str = "float32",
    remat: str = "none",
    unroll: int | None = None,
    attention: str = "auto",
) -> Model:
    """Return a BERT encoder with a linear head: float32 logits `[B, C]` of one text a row.

    The head is `classifier/kernel` `[D, C]` and `classifier/bias`; dropout falls on its input too. See `bert` for the
    rest. `apply` with `pooled=True` returns what the head reads, `[B, D]`.

    Args:
      shape: the sizes.
      classes: C, at least 2.
      pooling: what the head reads, see `bert`; "cls" is the classifier of the paper.
      dtype: see `bert`.
      remat: see `bert`.
      unroll: see `bert`.
      attention: see `bert`.

    Raises:
      ValueError: fewer than two classes, or an unknown `pooling`, `dtype`, `remat` or `attention`.
    """
    if classes < 2:
        raise ValueError(f"classes={classes} must be at least 2.")
    model = _model(shape, pooling, classes, dtype, remat, unroll, attention)
    encoder = bert(shape, pooling=pooling, dtype=dtype, remat=remat, unroll=unroll, attention=attention)

    def apply(params: Any, tokens: jax.Array, *, pooled: bool = False, **inputs: Any) -> jax.Array:
        if not pooled:
            return model.apply(params, tokens, **inputs)
        return encoder.apply({k: v for k, v in params.items() if k != "classifier"}, tokens, **inputs)

    return model._replace(apply=apply)


def _model(
    shape: BertShape,
    pooling: str | None,
    classes: int | None,
    dtype: str,
    remat: str,
    unroll: int | None,
    attention: str,
) -> Model:
    check_options(dtype, remat)
    check_attention(attention)
    if pooling not in (None, *POOLINGS):
        raise ValueError(f"pooling={pooling!r} is not one of {[None, *POOLINGS]}.")
    module = _Bert(shape, pooling, classes, DTYPES[dtype], remat, unroll, attention)
    example = jnp.zeros((1, min(2, shape.context)), jnp.int32)
    init, axes = weights(module, example, None, example, example, None)

    def apply(
        params: Any,
        tokens: jax.Array,
        *,
        segments: Any = None,
        positions: Any = None,
        types: Any = None,
        dropout: Any = None,
        mutable: Any = False,
    ) -> Any:
        refuse_unread(params, axes(), slots())
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        types = jnp.zeros_like(tokens) if types is None else types
        rate, key = dropout or (None, None)
        rngs = None if key is None else {"dropout": key}
        given = (tokens, segments, positions, types, rate)
        return module.apply({"params": params}, *given, rngs=rngs, mutable=mutable)

    def slots() -> dict[str, Slot]:
        head_width = shape.width // shape.heads
        return slots_of(depth=shape.depth, width=shape.width, heads=shape.heads, head_width=head_width)

    return Model(init, apply, axes, slots, make_intermediates(apply))
