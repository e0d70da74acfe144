"""How well a model knows a text: what forgetting and gain are differences of."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab.measure.measurement import Measurement
from adaptlab.models import Model, chosen_logits, cross_entropy

__all__ = ["held_out_text"]


class _Sums(NamedTuple):
    nats: jax.Array
    tokens: jax.Array
    correct: jax.Array
    bytes: jax.Array


def held_out_text(model: Model, token_bytes_V: np.ndarray) -> Measurement:
    """Measure next-token prediction on text.

    The metrics, over the N targets that count (weight 1), with p the model's distribution:
      loss: -Σ ln p(target) / N, in nats per token; `loss_sum` and `tokens` are its two parts.
      perplexity: exp(loss).
      bits_per_byte: -Σ log₂ p(target) / (UTF-8 bytes the targets stand for): comparable between tokenizers.
      accuracy: the share of targets than which no token is more probable.

    Forgetting of a domain at a step is its loss there minus the base's; gain on the target is the base's minus its.

    Args:
      model: a language model.
      token_bytes_V: the number of bytes each token stands for.
    """

    def update(state: _Sums, params: Any, batch: Any) -> _Sums:
        logits = model.apply(params, batch.tokens, segments=batch.segments, positions=batch.positions)
        nats = cross_entropy(logits, batch.targets)
        # As many passes over the logits as the loss needs anyway: an arg max costs a CPU more than the whole loss.
        hit = (chosen_logits(logits, batch.targets) >= jnp.max(logits, axis=-1)).astype(jnp.float32)
        size = jnp.asarray(token_bytes_V, jnp.float32)[batch.targets]
        seen = (nats, jnp.ones_like(nats), hit, size)
        return _Sums(*(s + jnp.sum(x * batch.weights) for s, x in zip(state, seen, strict=True)))

    def finish(state: _Sums) -> dict[str, float]:
        nats, tokens, correct, size = (float(x) for x in state)
        loss = nats / tokens
        return {
            "loss": loss,
            "loss_sum": nats,
            "tokens": tokens,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": nats / math.log(2) / size if size else math.nan,
            "accuracy": correct / tokens,
        }

    return Measurement(lambda: _Sums(*jnp.zeros(4)), update, finish)
