"""The training step: pure, and short."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaptlab import tree
from adaptlab.optim import averages, eval_params
from adaptlab.shard import constrain
from adaptlab.stats import Mean, merge
from adaptlab.train.objective import Objective
from adaptlab.train.stopping import Watch

__all__ = ["TrainState", "init_state", "make_step", "reading"]

Step = Callable[["TrainState", Any, Any, jax.Array], tuple["TrainState", dict[str, jax.Array]]]


class TrainState(NamedTuple):
    """All that changes while training; a checkpoint holds this and nothing else.

    Attributes:
      step: int32, the updates done.
      delta: what trains.
      opt_state: the optimiser's state.
      diverged_at: int32, the step whose loss or gradient was not finite, or -1. From then on nothing changes but
        `step`.
      watch: what early stopping remembers (`adaptlab.train.Watch`); empty without it.
    """

    step: jax.Array
    delta: Any
    opt_state: Any
    diverged_at: jax.Array
    watch: Any = ()


def reading(state: TrainState) -> Any:
    """Return the delta to measure and save: what trains, or with an optimiser that averages, its average."""
    return _average(state.opt_state, state.delta) if averages(state.opt_state) else state.delta


_average = jax.jit(eval_params)


def init_state(delta: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first update."""
    return TrainState(jnp.zeros((), jnp.int32), delta, optimizer.init(delta), jnp.full((), -1, jnp.int32))


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    rest: Callable[[Any], Any] = lambda grads: grads,
) -> Step:
    """Return `step(state, base, batch, key) -> (state, metrics)`.

    The gradient is that of sum(loss) / sum(weight) over the whole batch, however it is cut in microbatches.

    Args:
      objective: see `make_objective`.
      optimizer: an Optax transform.
      accumulate: microbatches per update; divides the batch's leading axis. Microbatch m has the rows m,
        m + accumulate, …: of rows that are split over devices, each device has its share of every microbatch.
      rest: says of a gradient where its arrays lie on a mesh.

    Returns:
      The step. Its metrics are scalars: `loss` (nats per token before the update, terms included), `weight`,
      `grad_norm` (before clipping).
    """

    def microbatch(delta: Any, base: Any, batch: Any, key: jax.Array) -> tuple[Any, Mean]:
        def total(delta: Any) -> tuple[Any, Mean]:
            mean = objective(delta, base, batch, key)
            return mean.sum, mean

        grads, mean = jax.grad(total, has_aux=True)(delta)
        return rest(grads), mean

    def gradient(delta: Any, base: Any, batch: Any, key: jax.Array) -> tuple[Any, Mean]:
        if accumulate == 1:
            grads, mean = microbatch(delta, base, batch, key)
        else:
            parts = jax.tree.map(lambda x: _cut(x, accumulate), batch)

            def add(carry: Any, part: Any) -> tuple[Any, None]:
                index, piece = part
                grads, mean = microbatch(delta, base, piece, jax.random.fold_in(key, index))
                return (jax.tree.map(jnp.add, carry[0], grads), merge(carry[1], mean)), None

            zero = (rest(jax.tree.map(jnp.zeros_like, delta)), Mean.empty())
            (grads, mean), _ = jax.lax.scan(add, zero, (jnp.arange(accumulate), parts))
        inverse = 1.0 / jnp.maximum(mean.weight, 1.0)
        return jax.tree.map(lambda g: g * inverse.astype(g.dtype), grads), mean

    def step(state: TrainState, base: Any, batch: Any, key: jax.Array) -> Any:
        grads, mean = gradient(state.delta, base, batch, key)
        grad_norm = tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.delta)
        healthy = (state.diverged_at < 0) & jnp.isfinite(mean.sum) & jnp.isfinite(grad_norm)
        diverged_at = jnp.where(healthy | (state.diverged_at >= 0), state.diverged_at, state.step)
        moving = healthy & ~state.watch.stopped if isinstance(state.watch, Watch) else healthy
        delta, opt_state = jax.tree.map(
            lambda new, old: jnp.where(moving, new, old),
            (optax.apply_updates(state.delta, updates), opt_state),
            (state.delta, state.opt_state),
        )
        metrics = {"loss": mean.value, "weight": mean.weight, "grad_norm": grad_norm}
        return TrainState(state.step + 1, delta, opt_state, diverged_at, state.watch), metrics

    return step


def _cut(x: jax.Array, parts: int) -> jax.Array:
    if x.shape[0] % parts:
        raise ValueError(f"accumulate={parts} does not divide the batch size {x.shape[0]}.")
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    return constrain(x, (None, "batch", *[None] * (x.ndim - 2)))
