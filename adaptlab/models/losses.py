"""Per-example losses and their sums: (sum, weight), never a mean of means."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from adaptlab import tree
from adaptlab.config import GIVEN, BelowOne, NonNegative, Share
from adaptlab.models.intermediates import recorded
from adaptlab.models.model import Model
from adaptlab.models.moe import load_balancing_loss, router_z_loss
from adaptlab.rng import stream_id
from adaptlab.shard import on_one_cpu
from adaptlab.stats import Mean

__all__ = ["chosen_logits", "classification", "cross_entropy", "language_modelling"]


def chosen_logits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return logits[target], `[...]` from logits `[..., V]` and targets `[...]`."""
    if on_one_cpu():  # where a masked sum would first write V numbers
        return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return _masked_sum(logits, targets)


def _masked_sum(logits: jax.Array, targets: jax.Array) -> jax.Array:
    ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    return jnp.sum(jnp.where(ids == targets[..., None], logits, 0.0), axis=-1)


@jax.custom_jvp
def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return -log softmax(logits)[target] in nats, `[...]` from logits `[..., V]` and targets `[...]`."""
    return _parts(logits, targets)[0]


@cross_entropy.defjvp
def _cross_entropy_jvp(primals: Any, tangents: Any) -> Any:
    """dL = Σ_v p_v dx_v - dx_target.

    The sum over a mask is never computed on the way back, only its transpose: a select, where a gather's is a scatter.
    """
    (logits, targets), (change, _) = primals, tangents
    nats, e, total = _parts(logits, targets)
    return nats, jnp.sum(e * change, axis=-1) / total - _masked_sum(change, targets)


def _parts(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The cross-entropy, and the softmax as numerators and their sum."""
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    e = jnp.exp(logits - peak[..., None])
    total = jnp.sum(e, axis=-1)
    # In this order, what large logits have in common cancels exactly.
    return jnp.log(total) + (peak - chosen_logits(logits, targets)), e, total


def language_modelling(
    model: Annotated[Model, GIVEN],
    *,
    dropout: BelowOne | None = None,
    label_noise: Share | None = None,
    label_smoothing: Share | None = None,
    balance: NonNegative | None = None,
    router_z: NonNegative | None = None,
) -> Any:
    """Return `loss(params, batch, key) -> Mean`: next-token cross-entropy over the tokens that count.

    The batch has `tokens`, `targets`, `segments`, `positions` and `weights`, all `[B, T]`. What is None is not in the
    program at all. The terms of a mixture of experts are means over the tokens that count of one (micro)batch.

    Args:
      model: the language model.
      dropout: the share of the embedding's and each residual branch's activations that is dropped.
      label_noise: the probability that a target is replaced by a token drawn uniformly, anew in each step.
      label_smoothing: ε of (1 - ε) · nats(target) + ε · mean over the vocabulary of nats (arXiv:1512.00567, sec. 7).
      balance: the coefficient of `adaptlab.models.moe.load_balancing_loss`, e.g. 0.01; of a mixture of experts only.
      router_z: the coefficient of `adaptlab.models.moe.router_z_loss`, e.g. 0.001; the same.

    Raises:
      ValueError: a coefficient for the router of a model that has none.
    """
    routed = balance is not None or router_z is not None
    if routed and not any(path.endswith("/router") for path in tree.flatten(model.axes(), lambda x: type(x) is tuple)):
        raise ValueError("balance and router_z are of a mixture of experts (mixtral); this model has no router.")

    def loss(params: Any, batch: Any, key: jax.Array) -> Mean:
        inputs: dict[str, Any] = {"segments": batch.segments, "positions": batch.positions}
        if dropout is not None:
            inputs["dropout"] = (dropout, jax.random.fold_in(key, stream_id("dropout")))
        if not routed:
            logits = model.apply(params, batch.tokens, **inputs)
            return _summed(logits, batch, key, label_noise, label_smoothing)
        logits, found = model.apply(params, batch.tokens, **inputs, mutable=["router", "chosen"])
        total, weight = _summed(logits, batch, key, label_noise, label_smoothing)
        return Mean(total + weight * _routing(found, batch, balance, router_z), weight)

    return loss


def _routing(found: Any, batch: Any, balance: Any, z: Any) -> jax.Array:
    """The terms of a mixture of experts, of what its routers recorded."""
    logits_LBTE, chosen_LBTK = (recorded(kind, found[kind], batch.tokens.shape[1]) for kind in ("router", "chosen"))
    total = jnp.zeros(())
    if balance is not None:
        total = total + balance * load_balancing_loss(logits_LBTE, chosen_LBTK, batch.weights)
    return total if z is None else total + z * router_z_loss(logits_LBTE, batch.weights)


def classification(
    model: Annotated[Model, GIVEN],
    *,
    dropout: BelowOne | None = None,
    label_noise: Share | None = None,
    label_smoothing: Share | None = None,
) -> Any:
    """Return `loss(params, batch, key) -> Mean`: cross-entropy over the texts that count.

    The batch has `tokens` and `segments` `[B, T]`, `targets` and `weights` `[B]`, see `adaptlab.data.LabelledBatch`.

    Args:
      model: the classifier, with logits `[B, C]`.
      dropout: as in `language_modelling`; the head's input is dropped too.
      label_noise: the probability that a class is replaced by one drawn uniformly, anew in each step.
      label_smoothing: as in `language_modelling`, over the classes.
    """

    def loss(params: Any, batch: Any, key: jax.Array) -> Mean:
        drops = {} if dropout is None else {"dropout": (dropout, jax.random.fold_in(key, stream_id("dropout")))}
        logits = model.apply(params, batch.tokens, segments=batch.segments, **drops)
        return _summed(logits, batch, key, label_noise, label_smoothing)

    return loss


def _summed(logits: jax.Array, batch: Any, key: jax.Array, noise: Any, smoothing: Any) -> Mean:
    targets = batch.targets
    if noise is not None:
        targets = _noisy(jax.random.fold_in(key, stream_id("label_noise")), targets, noise, logits.shape[-1])
    nats = cross_entropy(logits, targets)
    if smoothing is not None:
        uniform = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
        nats = (1.0 - smoothing) * nats + smoothing * uniform
    return Mean(jnp.sum(nats * batch.weights), jnp.sum(batch.weights))


def _noisy(key: jax.Array, targets: jax.Array, rate: Any, vocabulary: int) -> jax.Array:
    which, what = jax.random.split(key)
    other = jax.random.randint(what, targets.shape, 0, vocabulary, targets.dtype)
    return jnp.where(jax.random.uniform(which, targets.shape) < rate, other, targets)
