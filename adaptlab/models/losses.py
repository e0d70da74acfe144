"""Per-example losses and their sums: (sum, weight), never a mean of means."""

from typing import Any

import jax
import jax.numpy as jnp

from adaptlab.models.model import Model
from adaptlab.stats import Mean

__all__ = ["cross_entropy", "language_modelling"]


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return -log softmax(logits)[target] in nats, `[...]` from logits `[..., V]` and targets `[...]`."""
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    log_sum = jnp.log(jnp.sum(jnp.exp(logits - peak[..., None]), axis=-1))
    # A masked sum, not a gather: its gradient is a fused select where that of a gather is a scatter.
    ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    chosen = jnp.sum(jnp.where(ids == targets[..., None], logits, 0.0), axis=-1)
    return log_sum + (peak - chosen)  # in this order, what large logits have in common cancels exactly


def language_modelling(model: Model) -> Any:
    """Return `loss(params, batch, key) -> Mean`: next-token cross-entropy over the tokens that count.

    The batch has `tokens`, `targets`, `segments`, `positions` and `weights`, all `[B, T]`.
    """

    def loss(params: Any, batch: Any, key: jax.Array) -> Mean:
        del key  # the model has no randomness
        logits = model.apply(params, batch.tokens, segments=batch.segments, positions=batch.positions)
        nats = cross_entropy(logits, batch.targets)
        return Mean(jnp.sum(nats * batch.weights), jnp.sum(batch.weights))

    return loss
