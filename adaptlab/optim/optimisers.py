"""Optimisers: Optax chains whose numbers may be traced."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from adaptlab.config import GIVEN, Traced
from adaptlab.optim.schedules import Schedule, constant

__all__ = ["adamw", "sgd"]


def adamw(
    lr: Traced,
    *,
    total_steps: Annotated[int, GIVEN],
    schedule: Schedule | None = None,
    b1: Traced = 0.9,
    b2: Traced = 0.999,
    eps: Traced = 1e-8,
    weight_decay: Traced = 0.0,
    clip: Traced | None = None,
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
    """
    return _chain(
        optax.identity() if clip is None else optax.clip_by_global_norm(clip),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay),
        _scheduled(lr, schedule, total_steps),
    )


def sgd(
    lr: Traced,
    *,
    total_steps: Annotated[int, GIVEN],
    schedule: Schedule | None = None,
    momentum: Traced = 0.0,
    clip: Traced | None = None,
) -> optax.GradientTransformation:
    """Stochastic gradient descent with heavy-ball momentum (m ← momentum · m + g; w ← w - lr · m)."""
    return _chain(
        optax.identity() if clip is None else optax.clip_by_global_norm(clip),
        optax.trace(decay=momentum),
        _scheduled(lr, schedule, total_steps),
    )


def _chain(*transforms: optax.GradientTransformation) -> optax.GradientTransformation:
    """Chain transforms that may mix integer counts with float numbers, as Optax's own do, under any promotion rule."""
    inner = optax.chain(*transforms)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def _scheduled(lr: Traced, schedule: Schedule | None, total_steps: int) -> optax.GradientTransformation:
    factor = schedule or constant()
    return optax.scale_by_learning_rate(lambda step: lr * factor(jnp.asarray(step), total_steps))
