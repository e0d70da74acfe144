"""Schedule-free learning: averaging in place of a decay. What trains is not what is evaluated."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import optax
from optax import contrib

from adaptlab.config import GIVEN, BelowOne, NonNegative, Positive, Traced
from adaptlab.optim.assemble import assemble, scheduled_lr
from adaptlab.optim.groups import Groups, bias_corrected
from adaptlab.optim.schedules import Schedule

__all__ = ["averages", "eval_params", "schedule_free_adamw", "schedule_free_sgd"]


def schedule_free_adamw(
    lr: NonNegative,
    *,
    total_steps: Annotated[int, GIVEN],
    schedule: Schedule | None = None,
    b1: BelowOne = 0.9,
    b2: BelowOne = 0.999,
    eps: NonNegative = 1e-8,
    power: Traced = 2.0,
    weight_decay: NonNegative = 0.0,
    clip: Positive | None = None,
    groups: Groups | None = None,
) -> optax.GradientTransformation:
    """Schedule-free AdamW (arXiv:2405.15682, alg. 1): see `schedule_free_sgd`, with Adam's second moment in the step.

    Args:
      lr: the learning rate after its warm-up.
      total_steps: the number of updates.
      schedule: the factor of `lr`: constant, with a warm-up. There is no decay, so the run may stop at any time.
      b1: how far the gradient is taken towards the average; positive.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      power: the weight of an iterate in the average is its learning rate (the largest so far) to this power.
      weight_decay: decoupled, at the point where the gradient is taken.
      clip: the largest global gradient norm.
      groups: the parameter groups. The average of a part that starts late counts its weights before.
    """
    # Adam without a first moment, whose place the interpolation takes.
    core = optax.scale_by_rms(decay=b2, eps=eps, eps_in_sqrt=False, bias_correction=True)
    return assemble(
        bias_corrected(core, groups, total_steps),
        lr,
        total_steps=total_steps,
        schedule=schedule,
        weight_decay=weight_decay,
        clip=clip,
        groups=groups,
        average=_averaged(scheduled_lr(lr, schedule, total_steps), b1, power),
    )


def schedule_free_sgd(
    lr: NonNegative,
    *,
    total_steps: Annotated[int, GIVEN],
    schedule: Schedule | None = None,
    b1: BelowOne = 0.9,
    power: Traced = 2.0,
    weight_decay: NonNegative = 0.0,
    clip: Positive | None = None,
    groups: Groups | None = None,
) -> optax.GradientTransformation:
    """Schedule-free SGD (arXiv:2405.15682, eq. 3 to 5), whose parameters are y and whose evaluation is at x.

        y = (1 - b1) z + b1 x;   z ← z - lr ∇f(y);   x ← (1 - c) x + c z

    with c = lr^power / Σ lr^power over the updates so far, which averages all z.

    Args:
      lr: the learning rate after its warm-up; about ten times that of SGD with momentum 0.9.
      total_steps: the number of updates.
      schedule: the factor of `lr`: constant, with a warm-up.
      b1: how far the gradient is taken towards the average; positive.
      power: see above; `lr` there is the largest so far.
      weight_decay: decoupled, at y.
      clip: the largest global gradient norm.
      groups: the parameter groups. The average of a part that starts late counts its weights before.
    """
    return assemble(
        optax.identity(),
        lr,
        total_steps=total_steps,
        schedule=schedule,
        weight_decay=weight_decay,
        clip=clip,
        groups=groups,
        average=_averaged(scheduled_lr(lr, schedule, total_steps), b1, power),
    )


def eval_params(opt_state: Any, params: Any) -> Any:
    """Return the parameters to measure, save and report, given those that train: x of a schedule-free optimiser.

    The identity for every optimiser that does not average. Works on arrays and under jit; under a `vmap` over members
    call it inside. What it returns is not trained further: training goes on from `params`.

    Args:
      opt_state: the optimiser's state.
      params: what `optimizer.update` was given, after the update was applied.
    """
    for state in jax.tree.leaves(opt_state, is_leaf=_is_averaged):
        if _is_averaged(state):
            b1 = state.b1
            return jax.tree.map(lambda y, z, b1=b1: ((y - (1.0 - b1) * z) / b1).astype(y.dtype), params, state.z)
    return params


def averages(opt_state: Any) -> bool:
    """Whether the optimiser averages, so that `eval_params` is not the identity."""
    return any(_is_averaged(state) for state in jax.tree.leaves(opt_state, is_leaf=_is_averaged))


def _is_averaged(state: Any) -> bool:
    return isinstance(state, contrib.ScheduleFreeState)


def _averaged(rate: Callable[[Any], jax.Array], b1: BelowOne, power: Traced) -> Callable[..., Any]:
    def average(tail: optax.GradientTransformation) -> optax.GradientTransformation:
        # Optax counts these updates from 1, all others from 0.
        return contrib.schedule_free(tail, lambda count: rate(count - 1), b1=b1, weight_lr_power=power)

    return average
