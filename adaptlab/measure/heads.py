"""Attention heads: where each looks, and what the loss is without it.

Letters: L layers, H heads, K head width, T queries, S keys.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import leaf, tree
from adaptlab.config import GIVEN
from adaptlab.measure.measurement import Measurement
from adaptlab.models import Model
from adaptlab.rng import key_for

__all__ = ["attention_pattern", "head_ablation", "head_importance", "masked_heads", "number_of_heads"]

Loss = Callable[[Any, Any, jax.Array], Any]
"""`(params, batch, key) -> Mean`: the summed loss and its weight, as training has it."""

_OUT = "layers/attention/out/kernel"


class _Looks(NamedTuple):
    entropy_LH: jax.Array
    distance_LH: jax.Array
    queries: jax.Array


def _look(model: Model) -> Callable[..., dict[str, jax.Array]]:
    if model.intermediates is None:
        raise ValueError("This model records no attention: its `intermediates` is None. Llama, GPT-2 and BERT do.")
    return model.intermediates


def number_of_heads(model: Model, params: Any) -> tuple[int, int]:
    """Return L and H; nothing is computed."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    look = _look(model)
    found = jax.eval_shape(lambda p, t: look(p, t, kinds=("attention",))["attention"], params, tokens)
    return found.shape[0], found.shape[2]


def attention_pattern(model: Annotated[Model, GIVEN], heads: Annotated[tuple[int, int], GIVEN]) -> Measurement:
    """Measure where each head looks, on average over the queries that are not padding.

    With p_s the probability that a query at t gives to the key at s:
      attention/entropy/<layer>/<head>: -Σ_s p_s ln p_s in nats; ln S of a head that looks at S keys alike. A prompt's
        and a prefix's keys count.
      attention/distance/<layer>/<head>: Σ_s p_s |t - s| / Σ_s p_s in tokens, over the text's keys.

    A causal query at t sees t + 1 keys, so that both grow with the length of rows: compare on the same batches.

    Args:
      model: records its attention.
      heads: L and H, from `number_of_heads`.

    Raises:
      ValueError: a model that records none.
    """
    look, zero_LH = _look(model), jnp.zeros(heads)

    def update(state: _Looks, params: Any, batch: Any) -> _Looks:
        positions = {"positions": batch.positions} if hasattr(batch, "positions") else {}
        kinds = ("attention",)
        p_LBHTS = look(params, batch.tokens, kinds=kinds, segments=batch.segments, **positions)["attention"]
        T = batch.tokens.shape[1]
        real_BT = (batch.segments > 0).astype(jnp.float32)
        entropy_LBHT = -jnp.sum(jax.scipy.special.xlogy(p_LBHTS, p_LBHTS), axis=-1)
        text_LBHTT = p_LBHTS[..., -T:]
        at_T = jnp.arange(T, dtype=jnp.float32)
        apart_TT = jnp.abs(at_T[:, None] - at_T[None, :])
        seen_LBHT = jnp.sum(text_LBHTT, axis=-1)
        distance_LBHT = jnp.einsum("lbhts,ts->lbht", text_LBHTT, apart_TT) / jnp.maximum(seen_LBHT, 1e-30)

        def over_queries(x_LBHT: jax.Array) -> jax.Array:
            return jnp.einsum("lbht,bt->lh", x_LBHT, real_BT)

        found = (over_queries(entropy_LBHT), over_queries(distance_LBHT), jnp.sum(real_BT))
        return _Looks(*(s + x for s, x in zip(state, found, strict=True)))

    def finish(state: _Looks) -> dict[str, float]:
        entropy, distance = state.entropy_LH / state.queries, state.distance_LH / state.queries
        return _by_head("attention/entropy", entropy) | _by_head("attention/distance", distance)

    return Measurement(lambda: _Looks(zero_LH, zero_LH, jnp.zeros(())), update, finish)


def _by_head(what: str, values_LH: Any) -> dict[str, float]:
    return {f"{what}/{layer}/{head}": float(x) for (layer, head), x in np.ndenumerate(np.asarray(values_LH))}


def masked_heads(params: Any, mask_LH: jax.Array, *, out: str = _OUT) -> Any:
    """Return params in which the output of head h in layer l is multiplied by mask[l, h]: 0 removes it.

    The rows of the output projection that read the head are scaled, W_O ← diag(mask) W_O, whatever node the projection
    is, by scaling what it reads; no weight is copied.

    Args:
      params: a model's, adapted or not.
      mask_LH: may be traced.
      out: the path of the output projections `[L, H·K, D]`, whose rows are ordered by head.

    Raises:
      ValueError: no projection at the path, or one whose sizes are not those of the mask.
    """
    flat = tree.flatten(params, leaf.is_node)
    if out not in flat:
        raise ValueError(f"There is no output projection {out!r} to mask heads at; the paths are {sorted(flat)}.")
    shape = jax.eval_shape(leaf.dense, flat[out]).shape
    layers, heads = mask_LH.shape
    if shape[0] != layers or shape[1] % heads:
        raise ValueError(f"A mask of {layers} layers and {heads} heads does not fit {out!r} of shape {shape}.")
    flat[out] = leaf.Scaled(flat[out], jnp.repeat(mask_LH, shape[1] // heads, axis=1), None)
    return tree.unflatten(flat)


class _Losses(NamedTuple):
    without_LH: jax.Array
    whole: jax.Array
    weight: jax.Array


def head_ablation(
    loss: Annotated[Loss, GIVEN], heads: Annotated[tuple[int, int], GIVEN], *, chunk: int = 8, out: str = _OUT
) -> Measurement:
    """Measure what the loss rises by when one head's output is zero (arXiv:1905.10650, sec. 3.2), exactly.

    The metrics are `heads/ablation/<layer>/<head>`, in the loss's unit (nats per token), and `heads/loss`, with all
    heads. All heads run in one program: L·H forward passes a batch.

    Args:
      loss: `(params, batch, key) -> Mean`, without dropout.
      heads: L and H, from `number_of_heads`.
      chunk: heads removed at a time, side by side; memory is that of so many forward passes.
      out: see `masked_heads`.
    """
    layers, width = heads
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1.")

    def update(state: _Losses, params: Any, batch: Any) -> _Losses:
        key = key_for(0, "head_ablation")

        def without(one: jax.Array) -> jax.Array:
            mask = 1.0 - jax.nn.one_hot(one, layers * width).reshape(heads)
            return loss(masked_heads(params, mask, out=out), batch, key).sum

        whole = loss(params, batch, key)
        each = jax.lax.map(without, jnp.arange(layers * width), batch_size=chunk).reshape(heads)
        return _Losses(state.without_LH + each, state.whole + whole.sum, state.weight + whole.weight)

    def finish(state: _Losses) -> dict[str, float]:
        rise = (state.without_LH - state.whole) / state.weight
        return _by_head("heads/ablation", rise) | {"heads/loss": float(state.whole / state.weight)}

    return Measurement(lambda: _Losses(jnp.zeros(heads), jnp.zeros(()), jnp.zeros(())), update, finish)


def head_importance(
    loss: Annotated[Loss, GIVEN], heads: Annotated[tuple[int, int], GIVEN], *, out: str = _OUT
) -> Measurement:
    """Measure the gradient proxy of `head_ablation`, I_h = E_x |∂L(x) / ∂ξ_h| (arXiv:1905.10650, eq. 2).

    ξ_h multiplies head h's output and is 1; x is a row of a batch and L(x) the mean loss over its targets (the paper's
    examples have one each). Rows without a target do not count. One backward pass a row, all heads at once; where
    heads act together, or the loss bends, it is not what ablation finds.

    The metrics are `heads/importance/<layer>/<head>`. (The paper divides each layer's by their Euclidean norm.)

    Args:
      loss: `(params, batch, key) -> Mean`.
      heads: L and H, from `number_of_heads`.
      out: see `masked_heads`.
    """

    def update(state: _Losses, params: Any, batch: Any) -> _Losses:
        key = key_for(0, "head_importance")

        def one(row: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
            def value(mask: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
                mean = loss(masked_heads(params, mask, out=out), jax.tree.map(lambda x: x[None], row), key)
                counted = (mean.weight > 0).astype(jnp.float32)
                value = mean.sum / jnp.maximum(mean.weight, 1e-30) * counted
                return value, (value, counted)

            slope, (value_, counted) = jax.grad(value, has_aux=True)(jnp.ones(heads))
            return jnp.abs(slope), value_, counted

        slope, value, counted = jax.lax.map(one, batch)
        found = (jnp.sum(slope, axis=0), jnp.sum(value), jnp.sum(counted))
        return _Losses(*(s + x for s, x in zip(state, found, strict=True)))

    def finish(state: _Losses) -> dict[str, float]:
        return _by_head("heads/importance", state.without_LH / state.weight)

    return Measurement(lambda: _Losses(jnp.zeros(heads), jnp.zeros(()), jnp.zeros(())), update, finish)
