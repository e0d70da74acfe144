"""How every optimiser is put together: the order of its parts is written here, once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaptlab.config import Traced
from adaptlab.optim.groups import Groups, add_decayed_weights, bias_corrected, mask_frozen, scale_by_group
from adaptlab.optim.schedules import Schedule, constant

__all__ = ["ScheduledState", "assemble", "momentum_core", "scheduled_lr"]

Transform = optax.GradientTransformation


class ScheduledState(NamedTuple):
    """The state of a core whose momentum is scheduled: the updates done, and the core's own."""

    count: jax.Array
    inner: Any


def assemble(
    core: Transform,
    lr: Traced,
    *,
    total_steps: int,
    schedule: Schedule | None,
    weight_decay: Traced,
    clip: Traced | None,
    groups: Groups | None,
    average: Callable[[Transform], Transform] | None = None,
) -> Transform:
    """Chain what is common to all optimisers around a core.

    In this order: what is frozen gets no gradient; the global norm is clipped; the core turns gradients into
    directions; weights decay; groups have their rates; the scheduled learning rate and the sign. Without groups there
    is no trace of them in the chain.

    Args:
      core: gradients to directions, e.g. Adam's.
      lr: the peak learning rate.
      total_steps: the number of updates.
      schedule: the factor of `lr`; None is constant.
      weight_decay: decoupled (arXiv:1711.05101): λ · w joins the direction, so that it too is multiplied by the rate.
      clip: the largest global gradient norm; None does not clip.
      groups: the parameter groups; None treats all parameters alike.
      average: put around the core and what follows it, for methods that average iterates; None
        averages nothing.
    """
    tail = [core, add_decayed_weights(weight_decay, groups)]
    tail += [] if groups is None else [scale_by_group(groups, total_steps)]
    tail += [optax.scale_by_learning_rate(scheduled_lr(lr, schedule, total_steps))]
    head = [] if groups is None else [mask_frozen(groups, total_steps)]
    head += [optax.identity() if clip is None else optax.clip_by_global_norm(clip)]
    # What averages iterates computes parameters anew, which rounds: what is frozen keeps its bits.
    guard = [] if groups is None or average is None else [mask_frozen(groups, total_steps)]
    return _mixing_types(optax.chain(*head, *(tail if average is None else [average(optax.chain(*tail))]), *guard))


def scheduled_lr(lr: Traced, schedule: Schedule | None, total_steps: int) -> Callable[[Any], jax.Array]:
    """Return `count -> learning rate`."""
    factor = schedule or constant()
    return lambda count: lr * factor(jnp.asarray(count), total_steps)


def momentum_core(
    make: Callable[[Traced], Transform],
    momentum: Traced,
    momentum_schedule: Schedule | None,
    *,
    groups: Groups | None,
    total_steps: int,
) -> Transform:
    """Return the core `make(momentum)`, its momentum scheduled if there is a schedule of it.

    Args:
      make: `momentum -> core`, whose state does not depend on the momentum.
      momentum: its value where there is no schedule.
      momentum_schedule: its value, not a factor of it.
      groups: what starts late sees the momentum of the run's step, not of its own.
      total_steps: the number of updates.
    """

    def core(value: Any) -> Transform:
        return bias_corrected(make(value), groups, total_steps)

    if momentum_schedule is None:
        return core(momentum)

    def init(params: Any) -> ScheduledState:
        return ScheduledState(jnp.zeros((), jnp.int32), core(momentum).init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ScheduledState]:
        now = core(momentum_schedule(state.count, total_steps))
        updates, inner = now.update(updates, state.inner, params)
        return updates, ScheduledState(state.count + 1, inner)

    return Transform(init, update)


def _mixing_types(inner: Transform) -> Transform:
    """Let a transform mix integer counts with float numbers, as Optax's own do, under any promotion rule."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return Transform(inner.init, update)
