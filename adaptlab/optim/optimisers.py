"""Optimisers that treat every array alike: Optax chains whose numbers may be traced.

What they have in common is described at `adamw`; `adaptlab.optim.assemble` has the order of the parts.
"""

from typing import Annotated

import optax

from adaptlab.config import GIVEN, BelowOne, NonNegative, Positive
from adaptlab.optim.assemble import assemble, momentum_core
from adaptlab.optim.groups import Groups
from adaptlab.optim.schedules import Schedule

__all__ = ["adamw", "lion", "sgd"]


def adamw(
    lr: NonNegative,
    *,
    total_steps: Annotated[int, GIVEN],
    schedule: Schedule | None = None,
    b1: BelowOne = 0.9,
    b2: BelowOne = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    clip: Positive | None = None,
    momentum_schedule: Schedule | None = None,
    groups: Groups | None = None,
) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101, alg. 2) with a schedule and global-norm clipping in front.

    Args:
      lr: the peak learning rate.
      total_steps: the number of updates, which the schedule stretches over.
      schedule: its factor over the updates; by default constant.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled, times the scheduled learning rate.
      clip: the largest global gradient norm; None does not clip.
      momentum_schedule: b1 over the updates, in place of `b1`. The bias correction is 1 - b1ᵗ with the b1 of update t,
        as in PyTorch.
      groups: the parameter groups; by default one.
    """

    def make(b1: BelowOne) -> optax.GradientTransformation:
        return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    core = momentum_core(make, b1, momentum_schedule, groups=groups, total_steps=total_steps)
    return assemble(
        core, lr, total_steps=total_steps, schedule=schedule, weight_decay=weight_decay, clip=clip, groups=groups
    )


def sgd(
    lr: NonNegative,
    *,
    total_steps: Annotated[int, GIVEN],
    schedule: Schedule | None = None,
    momentum: BelowOne = 0.0,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
    clip: Positive | None = None,
    momentum_schedule: Schedule | None = None,
    groups: Groups | None = None,
) -> optax.GradientTransformation:
    """Stochastic gradient descent with heavy-ball momentum: m ← momentum · m + g; w ← w - lr · (m + weight_decay · w).

    Args:
      lr: the peak learning rate.
      total_steps: the number of updates.
      schedule: the factor of `lr`.
      momentum: the share of the last direction that stays.
      nesterov: look ahead: the direction is g + momentum · m (as PyTorch has it).
      weight_decay: decoupled (SGDW, arXiv:1711.05101, alg. 1); PyTorch's is added to the gradient instead.
      clip: the largest global gradient norm.
      momentum_schedule: the momentum over the updates, in place of `momentum`.
      groups: the parameter groups.
    """

    def make(momentum: BelowOne) -> optax.GradientTransformation:
        return optax.trace(decay=momentum, nesterov=nesterov)

    core = momentum_core(make, momentum, momentum_schedule, groups=groups, total_steps=total_steps)
    return assemble(
        core, lr, total_steps=total_steps, schedule=schedule, weight_decay=weight_decay, clip=clip, groups=groups
    )


def lion(
    lr: NonNegative,
    *,
    total_steps: Annotated[int, GIVEN],
    schedule: Schedule | None = None,
    b1: BelowOne = 0.9,
    b2: BelowOne = 0.99,
    weight_decay: NonNegative = 0.0,
    clip: Positive | None = None,
    momentum_schedule: Schedule | None = None,
    groups: Groups | None = None,
) -> optax.GradientTransformation:
    """Lion (arXiv:2302.06675, alg. 2): w ← w - lr · (sign(b1 · m + (1 - b1) · g) + weight_decay · w).

    Every element moves by the learning rate, which is therefore 3 to 10 times smaller than AdamW's, with a weight
    decay larger by as much (section 5).

    Args:
      lr: the peak learning rate.
      total_steps: the number of updates.
      schedule: the factor of `lr`.
      b1: the share of the momentum in the direction.
      b2: decay of the momentum: m ← b2 · m + (1 - b2) · g.
      weight_decay: decoupled, times the scheduled learning rate.
      clip: the largest global gradient norm.
      momentum_schedule: b1 over the updates, in place of `b1`.
      groups: the parameter groups.
    """

    def make(b1: BelowOne) -> optax.GradientTransformation:
        return optax.scale_by_lion(b1=b1, b2=b2)

    core = momentum_core(make, b1, momentum_schedule, groups=groups, total_steps=total_steps)
    return assemble(
        core, lr, total_steps=total_steps, schedule=schedule, weight_decay=weight_decay, clip=clip, groups=groups
    )
