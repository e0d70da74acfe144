"""Learning-rate schedules as factors of a peak: functions of a traced step and traced numbers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from adaptlab.config import Traced

__all__ = ["Schedule", "constant", "cosine", "linear"]

Schedule = Callable[[jax.Array, int], jax.Array]
"""`(step, total_steps) -> factor` of the peak learning rate; `step` counts updates from 0."""


def _updates(step: jax.Array) -> jax.Array:
    """The updates done once this one is."""
    return step.astype(jnp.float32) + 1.0


def _warm_up(step: jax.Array, total: int, warmup: Traced) -> jax.Array:
    # Update 0 already moves: (step + 1) / w, not step / w, which would waste the first batch.
    return jnp.minimum(1.0, _updates(step) / jnp.maximum(1.0, warmup * float(total)))


def _progress(step: jax.Array, total: int, warmup: Traced) -> jax.Array:
    """0 while warming up, then linearly to 1 at the last update."""
    start = warmup * float(total)
    return jnp.clip((_updates(step) - start) / jnp.maximum(1.0, float(total) - start), 0.0, 1.0)


def constant(*, warmup: Traced = 0.0) -> Schedule:
    """Linear warm-up over the fraction `warmup` of all updates, then 1."""
    return lambda step, total: _warm_up(step, total, warmup)


def linear(*, warmup: Traced = 0.1, final: Traced = 0.0) -> Schedule:
    """Linear warm-up over the fraction `warmup`, then a straight line from 1 to `final` at the last update."""

    def schedule(step: jax.Array, total: int) -> jax.Array:
        decay = 1.0 - (1.0 - final) * _progress(step, total, warmup)
        return _warm_up(step, total, warmup) * decay

    return schedule


def cosine(*, warmup: Traced = 0.1, final: Traced = 0.0) -> Schedule:
    """Linear warm-up over the fraction `warmup`, then half a cosine from 1 to `final` (arXiv:1608.03983, eq. 5)."""

    def schedule(step: jax.Array, total: int) -> jax.Array:
        half = 0.5 * (1.0 + jnp.cos(jnp.pi * _progress(step, total, warmup)))
        return _warm_up(step, total, warmup) * (final + (1.0 - final) * half)

    return schedule
