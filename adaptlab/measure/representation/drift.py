"""How far a tuned model's hidden states have drifted from the base's, layer by layer, on the same text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab.config import GIVEN
from adaptlab.measure.measurement import Measurement
from adaptlab.measure.representation import indices
from adaptlab.measure.representation.moments import Moments, moments_of, zero_moments
from adaptlab.models import Model

__all__ = ["DRIFTS", "minibatch_cka", "representation_drift"]

DRIFTS: Mapping[str, Callable[[Moments], float]] = {
    "cka": indices.cka,
    "debiased_cka": indices.debiased_cka,
    "procrustes": indices.procrustes,
    "svcca": indices.svcca,
    "pwcca": indices.pwcca,
    "relative_change": indices.relative_change,
    "cosine": indices.mean_cosine,
}
"""What can be measured, see `indices`; x is the base's state and y the tuned model's."""


def _hidden(model: Model) -> Callable[[Any, Any], jax.Array]:
    """`(params, batch) -> [L + 1, B, T, D]`."""
    if model.intermediates is None:
        raise ValueError("This model records no hidden states: its `intermediates` is None. Llama, GPT-2 and BERT do.")
    look = model.intermediates

    def hidden(params: Any, batch: Any) -> jax.Array:
        positions = {"positions": batch.positions} if hasattr(batch, "positions") else {}
        return look(params, batch.tokens, kinds=("hidden",), segments=batch.segments, **positions)["hidden"]

    return hidden


def _chosen(states: jax.Array, layers: Sequence[int] | None) -> jax.Array:
    """`[L', B·T, D]` of the chosen entries."""
    rows = states.reshape(states.shape[0], -1, states.shape[-1])
    return rows if layers is None else rows[np.asarray(layers)]


def _pairs(
    model: Model, layers: Sequence[int] | None, skip: int
) -> Callable[[Any, Any], tuple[jax.Array, jax.Array, jax.Array]]:
    """`((base, params), batch) -> x, y [L', N, D] and the weight [N]`, 1 of the tokens that count."""
    hidden = _hidden(model)
    if skip < 0:
        raise ValueError(f"skip={skip} must be at least 0: how many tokens at the front are left out.")

    def pairs(params: Any, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        base, tuned = params
        x, y = (_chosen(hidden(each, batch), layers) for each in (base, tuned))
        T = batch.tokens.shape[1]
        positions = batch.positions if hasattr(batch, "positions") else jnp.arange(T, dtype=jnp.int32)[None]
        counted = (batch.segments > 0) & jnp.broadcast_to(positions >= skip, batch.tokens.shape)
        return x, y, counted.reshape(-1).astype(jnp.float32)

    return pairs


def _numbers(states: int, layers: Sequence[int] | None) -> list[int]:
    chosen = list(range(states)) if layers is None else list(layers)
    if outside := [i for i in chosen if not 0 <= i < states]:
        raise ValueError(f"layers={outside}: there are the states 0 (embedded input) to {states - 1}.")
    return chosen


def _shape(model: Model) -> tuple[int, int]:
    """The number of states, L + 1, and their width D."""
    slot = model.slots()["layers/feed_forward_adapter"]
    return slot.shape[0] + 1, slot.shape[1]


def representation_drift(
    model: Annotated[Model, GIVEN],
    *,
    metrics: Sequence[str] = ("cka", "debiased_cka", "procrustes"),
    layers: Sequence[int] | None = None,
    skip: int = 0,
) -> Measurement:
    """Measure how alike the hidden states of a base and a tuned model are; a token that is not padding is an input.

    The metrics are `hidden/<what>/<layer>`, layer 0 being the embedded input and layer l what layer l leaves
    (`adaptlab.models.Model.intermediates`). The state holds three D x D matrices a layer: with a wide and deep model,
    choose layers, or take `minibatch_cka`. A batch is summed in float32 around zero, not around its mean: where the
    mean state is k times as long as its spread, similarities lose 2 log₁₀ k of about six digits.

    Args:
      model: records its hidden states. The measured params are the pair (base, tuned): with `make_probe`,
        `bind=lambda numbers, base, delta: (base, bind(numbers, base, delta))`.
      metrics: which of `DRIFTS`.
      layers: which states; None is all.
      skip: tokens at positions below this do not count. Decoders park huge activations at a text's first token
        (arXiv:2402.17762), which would decide every similarity alone: 1 leaves it out.

    Raises:
      ValueError: an unknown metric, a layer that is not there, a negative skip, or a model without hidden states.
    """
    if unknown := [name for name in metrics if name not in DRIFTS]:
        raise ValueError(f"metrics={unknown} are no similarities; choose from {list(DRIFTS)}.")
    pairs, (states, width) = _pairs(model, layers, skip), _shape(model)
    numbers = _numbers(states, layers)

    def update(state: Moments, params: Any, batch: Any) -> Moments:
        x, y, weight = pairs(params, batch)
        return jax.tree.map(jnp.add, state, jax.vmap(moments_of, in_axes=(0, 0, None))(x, y, weight))

    def finish(state: Moments) -> dict[str, float]:
        found = {}
        for i, layer in enumerate(numbers):
            one = Moments(*(x[i] for x in state))
            found |= {f"hidden/{name}/{layer}": DRIFTS[name](one) for name in metrics}
        return found

    return Measurement(lambda: zero_moments(len(numbers), width), update, finish)


def minibatch_cka(model: Annotated[Model, GIVEN], *, layers: Sequence[int] | None = None, skip: int = 0) -> Measurement:
    """Measure debiased linear CKA by minibatches (arXiv:2010.15327, eq. 2), `hidden/minibatch_cka/<layer>`.

        Σ_b HSIC₁(X_b, Y_b) / (√Σ_b HSIC₁(X_b, X_b) √Σ_b HSIC₁(Y_b, Y_b))

    HSIC₁ is unbiased, so that batch sizes do not matter but for noise; the state is three numbers a layer.

    Args:
      model: see `representation_drift`, as for params.
      layers: which states; None is all.
      skip: see `representation_drift`.

    Raises:
      ValueError: a layer that is not there, a negative skip, or a model without hidden states.
    """
    pairs = _pairs(model, layers, skip)
    numbers = _numbers(_shape(model)[0], layers)

    def update(state: jax.Array, params: Any, batch: Any) -> jax.Array:
        x, y, weight = pairs(params, batch)

        def one(x_ND: jax.Array, y_ND: jax.Array) -> jax.Array:
            return jnp.stack(
                indices.hsic_triple(moments_of(_less_mean(x_ND, weight), _less_mean(y_ND, weight), weight))
            )

        return state + jax.vmap(one)(x, y)

    def finish(state: np.ndarray) -> dict[str, float]:
        rows = np.asarray(state, np.float64)
        return {
            f"hidden/minibatch_cka/{layer}": indices.ratio_of_hsic(*map(float, rows[i]))
            for i, layer in enumerate(numbers)
        }

    return Measurement(lambda: jnp.zeros((len(numbers), 3)), update, finish)


def _less_mean(x_ND: jax.Array, weight_N: jax.Array) -> jax.Array:
    """Take the mean off, which HSIC₁ does not see and float32 sums do."""
    x_ND = x_ND.astype(jnp.float32)
    return x_ND - jnp.sum(x_ND * weight_N[:, None], axis=0, keepdims=True) / jnp.maximum(jnp.sum(weight_N), 1.0)
