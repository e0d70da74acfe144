"""What becomes of an encoder's sense of similarity: forgetting, for a base that predicts no words."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaptlab.measure.measurement import Measurement
from adaptlab.models import Model

__all__ = ["Sentences", "sentence_embeddings", "sentence_similarity"]


class Sentences(NamedTuple):
    """Rows of one text each, with what the base makes of them.

    tokens, segments: `[B, T]`, see `adaptlab.data.LabelledBatch`.
    weights: `[B]`, 0 for a row that fills up a batch.
    reference: `[B, D]`, the base's embeddings, see `sentence_embeddings`.
    """

    tokens: Any
    segments: Any
    weights: Any
    reference: Any


class _Sums(NamedTuple):
    texts: jax.Array
    same: jax.Array
    pairs: jax.Array
    now: jax.Array
    then: jax.Array
    now_now: jax.Array
    then_then: jax.Array
    now_then: jax.Array


def sentence_embeddings(model: Model, params: Any, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """Return the texts' pooled vectors at length 1, `[B, D]` (arXiv:1908.10084, sec. 3).

    Args:
      model: an encoder with a head, see `adaptlab.models.bert_classifier`; the head is not read.
      params: its weights.
      tokens: `[B, T]`.
      segments: `[B, T]`, 0 for padding.
    """
    x_BD = model.apply(params, tokens, segments=segments, pooled=True)
    length_B1 = jnp.linalg.norm(x_BD, axis=-1, keepdims=True)
    return x_BD / jnp.maximum(length_B1, 1e-12)


def sentence_similarity(model: Model) -> Measurement:
    """Measure how far the similarities of texts have moved from the base's.

    Over the pairs of texts of a batch, with s and s⁰ the cosine of their embeddings now and in the base:
      similarity_error: √(mean (s - s⁰)²); 0 in the base.
      similarity_correlation: Pearson's correlation of s and s⁰; 1 in the base. It forgives a common shift and scale, so
        it asks whether the *order* of similarities is kept (representational similarity, Kriegeskorte et al. 2008).
      embedding_cosine: the mean cosine of a text's embedding now with that in the base; 1 in the base. A rotation of
        all embeddings lowers it and neither of the others.

    Args:
      model: see `sentence_embeddings`. The batches are `Sentences`.
    """

    def update(state: _Sums, params: Any, batch: Sentences) -> _Sums:
        x_BD = sentence_embeddings(model, params, batch.tokens, batch.segments)
        now_BB, then_BB = (jnp.einsum("bd,cd->bc", e, e) for e in (x_BD, batch.reference))
        weight_BB = jnp.triu(batch.weights[:, None] * batch.weights[None, :], 1)
        over_pairs = (jnp.ones_like(now_BB), now_BB, then_BB, now_BB**2, then_BB**2, now_BB * then_BB)
        same = jnp.sum(jnp.sum(x_BD * batch.reference, axis=-1) * batch.weights)
        found = (jnp.sum(batch.weights), same, *(jnp.sum(x * weight_BB) for x in over_pairs))
        return _Sums(*(s + x for s, x in zip(state, found, strict=True)))

    def finish(state: _Sums) -> dict[str, float]:
        n = float(state.pairs)
        now, then, nn, tt, nt = (float(x) / n for x in state[3:])
        spread = math.sqrt(max(nn - now**2, 0.0) * max(tt - then**2, 0.0))
        return {
            "similarity_error": math.sqrt(max(nn - 2 * nt + tt, 0.0)),
            "similarity_correlation": (nt - now * then) / spread if spread else math.nan,
            "embedding_cosine": float(state.same / state.texts),
            "pairs": n,
        }

    return Measurement(lambda: _Sums(*jnp.zeros(8)), update, finish)
