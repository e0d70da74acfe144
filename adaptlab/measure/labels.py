"""How well a classifier knows its classes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab.measure.measurement import Measurement
from adaptlab.models import Model, cross_entropy

__all__ = ["held_out_labels"]


class _Sums(NamedTuple):
    nats: jax.Array
    texts: jax.Array
    confusion_CC: jax.Array


def held_out_labels(model: Model, classes: int) -> Measurement:
    """Measure classification of texts.

    The metrics, over the N texts that count (weight 1), with p the model's distribution over C classes:
      loss: -Σ ln p(class) / N, in nats per text; `loss_sum` and `texts` are its two parts.
      accuracy: the share of texts whose class is the most probable one.
      macro_f1: the mean over classes of 2 TP / (2 TP + FP + FN), so that rare classes count as much as frequent ones;
        over the classes that some text has or is given.

    Args:
      model: a classifier, with logits `[B, C]`.
      classes: C.
    """

    def init() -> _Sums:
        return _Sums(jnp.zeros(()), jnp.zeros(()), jnp.zeros((classes, classes)))

    def update(state: _Sums, params: Any, batch: Any) -> _Sums:
        logits_BC = model.apply(params, batch.tokens, segments=batch.segments)
        given_BC = jax.nn.one_hot(jnp.argmax(logits_BC, axis=-1), classes) * batch.weights[:, None]
        confusion_CC = jnp.einsum("bc,bd->cd", jax.nn.one_hot(batch.targets, classes), given_BC)
        nats = jnp.sum(cross_entropy(logits_BC, batch.targets) * batch.weights)
        return _Sums(state.nats + nats, state.texts + jnp.sum(batch.weights), state.confusion_CC + confusion_CC)

    def finish(state: _Sums) -> dict[str, float]:
        confusion_CC = np.asarray(state.confusion_CC)
        right_C, sizes_C = np.diag(confusion_CC), confusion_CC.sum(0) + confusion_CC.sum(1)
        f1_C = 2 * right_C[sizes_C > 0] / sizes_C[sizes_C > 0]
        return {
            "loss": float(state.nats / state.texts),
            "loss_sum": float(state.nats),
            "texts": float(state.texts),
            "accuracy": float(right_C.sum() / state.texts),
            "macro_f1": float(f1_C.mean()),
        }

    return Measurement(init, update, finish)
