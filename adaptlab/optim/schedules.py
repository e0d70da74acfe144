"""Learning-rate schedules as factors of a peak: functions of a traced step and traced numbers.

A schedule depends on the step alone, so a resumed run needs nothing but its step. Lengths are fractions of all updates
unless an argument says otherwise; one that float32 cannot tell from a whole number of updates is that number.

The schedules that begin with a warm-up take an `offset`, which is added to the step. By default it is 1: the update
being done counts, update 0 already moves, and the last update has the final value. With `offset=0` update 0 has the
value at the very start (0 after a warm-up), as PyTorch and transformers have it, and the final value is what a further
update would have. Steps are exact in float32 up to 2²⁴. What falls to zero is computed from the distance to its zero:
1 - p and 1 + cos(π p) would have no correct digit left there.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from adaptlab.config import NonNegative, Positive, Share, Traced

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "exponential",
    "inverse_sqrt",
    "linear",
    "polynomial",
    "step_decay",
    "wsd",
]

Schedule = Callable[[jax.Array, int], jax.Array]
"""`(step, total_steps) -> factor` of the peak learning rate; `step` counts updates from 0."""

Shape = Literal["linear", "cosine", "1-sqrt", "square", "exponential"]


def constant(*, warmup: Share = 0.0, initial: NonNegative = 0.0, offset: Traced = 1.0) -> Schedule:
    """Linear warm-up from `initial` to 1 over the fraction `warmup` of all updates, then 1."""
    return lambda step, total: warm_up(counted(step, offset), updates(warmup, total), initial)


def linear(*, warmup: Share = 0.1, final: NonNegative = 0.0, offset: Traced = 1.0) -> Schedule:
    """Linear warm-up over the fraction `warmup`, then a straight line from 1 to `final` at the last update."""
    return polynomial(power=1.0, warmup=warmup, final=final, offset=offset)


def polynomial(*, power: Traced = 2.0, warmup: Share = 0.1, final: NonNegative = 0.0, offset: Traced = 1.0) -> Schedule:
    """Linear warm-up, then final + (1 - final) (1 - p)^power, where p goes from 0 to 1 at the last update."""

    def decay(n: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        return between(final, 1.0, ((end - n) / (end - start)) ** power)

    return _after_warm_up(warmup, offset, decay)


def cosine(*, warmup: Share = 0.1, final: NonNegative = 0.0, cycles: Traced = 0.5, offset: Traced = 1.0) -> Schedule:
    """Linear warm-up, then a cosine between 1 and `final`: final + (1 - final) (1 + cos 2π·cycles·p) / 2.

    Half a cycle is the usual decay (arXiv:1608.03983, eq. 5); 1.5 come back to 1 once. `cosine_restarts` jumps back.
    """

    def decay(n: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        length = end - start
        # (1 + cos 2πu) / 2 = sin² π(u - ½), whose zeros are at whole u - ½.
        behind = cycles * (n - start) - 0.5 * length
        behind = behind - length * jnp.round(behind / length)
        return between(final, 1.0, jnp.sin(jnp.pi * behind / length) ** 2)

    return _after_warm_up(warmup, offset, decay)


def inverse_sqrt(*, warmup: Share = 0.1, timescale: Positive | None = None, offset: Traced = 1.0) -> Schedule:
    """Linear warm-up over the fraction `warmup`, then 1 / √(1 + (n - warm-up) / timescale) at update n.

    Args:
      warmup: a fraction of all updates.
      timescale: how long the decay takes to reach 1 / √2, as a fraction of all updates; None takes the warm-up's
        length, which gives √(warm-up / n) (arXiv:1706.03762, eq. 3).
      offset: see the module.
    """

    def schedule(step: jax.Array, total: int) -> jax.Array:
        n, start = counted(step, offset), updates(warmup, total)
        scale = jnp.maximum(1.0, start if timescale is None else updates(timescale, total))
        return warm_up(n, start) * jax.lax.rsqrt(1.0 + jnp.maximum(0.0, n - start) / scale)

    return schedule


def exponential(*, final: NonNegative = 0.01, warmup: Share = 0.0, offset: Traced = 1.0) -> Schedule:
    """Linear warm-up, then final^p, where p goes from 0 to 1 at the last update: the same factor at every update.

    `final` is positive. A factor γ per update is final = γ^(total_steps), and `final` holds more of its digits.
    """

    def decay(n: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        return as_float(final) ** ((n - start) / (end - start))

    return _after_warm_up(warmup, offset, decay)


def step_decay(*, at: Sequence[Any] = (0.5, 0.75), factor: Traced = 0.1, warmup: Share = 0.0) -> Schedule:
    """Linear warm-up, then 1, times `factor` from each of the updates `at` on (fractions of all updates)."""

    def schedule(step: jax.Array, total: int) -> jax.Array:
        passed = sum((counted(step, 0.0) >= updates(one, total)).astype(jnp.float32) for one in at)
        return warm_up(counted(step, 1.0), updates(warmup, total)) * as_float(factor) ** passed

    return schedule


def wsd(
    *,
    warmup: Share = 0.05,
    decay: Traced = 0.2,
    shape: Shape = "1-sqrt",
    initial: NonNegative = 0.0,
    final: NonNegative = 0.0,
    offset: Traced = 1.0,
) -> Schedule:
    """Warm-up, stable, decay (arXiv:2404.06395, section 4): from `initial` to 1, then 1, then down to `final`.

    With p going from 0 to 1 over the decay, the factor is final + (1 - final) s(p), where s is

    - "linear": 1 - p
    - "cosine": (1 + cos πp) / 2
    - "1-sqrt": 1 - √p (arXiv:2405.18392)
    - "square": 1 - p²

    and final^p for "exponential", which needs a positive `final`.

    Args:
      warmup: the fraction of all updates that warms up.
      decay: the last fraction of all updates, which decays.
      shape: how it decays.
      initial: the factor the warm-up begins with.
      final: the factor at the end.
      offset: see the module.

    Raises:
      ValueError: an unknown shape.
    """
    if shape not in get_args(Shape):
        raise ValueError(f"wsd: shape={shape!r} is not one of {list(get_args(Shape))}.")

    def schedule(step: jax.Array, total: int) -> jax.Array:
        n, end = counted(step, offset), float(total)
        length = jnp.maximum(1.0, updates(decay, total))
        left = jnp.clip((end - n) / length, 0.0, 1.0)
        passed = jnp.clip((n - (end - length)) / length, 0.0, 1.0)
        factor = as_float(final) ** passed if shape == "exponential" else between(final, 1.0, _falling(shape, left))
        return warm_up(n, updates(warmup, total), initial) * factor

    return schedule


def _falling(shape: Shape, left: jax.Array) -> jax.Array:
    """What falls from 1 to 0 while the part that is left does, without a difference of equals."""
    if shape == "cosine":
        return half_cosine(left)
    if shape == "1-sqrt":
        return left / (1.0 + jnp.sqrt(1.0 - left))
    return left * (2.0 - left) if shape == "square" else left


def _after_warm_up(
    warmup: Share, offset: Traced, decay: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
) -> Schedule:
    """Warm up, then `decay(n, start, end)`, with n between them."""

    def schedule(step: jax.Array, total: int) -> jax.Array:
        n, start = counted(step, offset), updates(warmup, total)
        end = jnp.maximum(float(total), start + 1.0)
        return warm_up(n, start) * decay(jnp.clip(n, start, end), start, end)

    return schedule


def counted(step: jax.Array, offset: Traced) -> jax.Array:
    """The step as a float, from `offset` on."""
    return step.astype(jnp.float32) + offset


def updates(fraction: Traced, total: int) -> jax.Array:
    """A fraction of all updates in updates: a whole number if it is one as far as float32 can tell.

    0.3 · 100 is not 30 in float32, and √(30 - 0.3 · 100) would be far from 0.
    """
    return near_whole(as_float(fraction) * float(total), float(total) * 2.0**-22)


def near_whole(amount: jax.Array, tolerance: Any) -> jax.Array:
    """The nearest whole number if it is within the tolerance, else the amount itself."""
    whole = jnp.round(amount)
    return jnp.where(jnp.abs(amount - whole) <= tolerance, whole, amount)


def warm_up(n: jax.Array, length: jax.Array, initial: NonNegative = 0.0) -> jax.Array:
    """A straight line from `initial` at 0 to 1 at `length`, then 1; all 1 if there is no length."""
    part = jnp.clip(n / jnp.maximum(1.0, length), 0.0, 1.0)
    return jnp.where(length > 0.0, between(initial, 1.0, part), 1.0)


def between(low: Traced, high: Traced, part: jax.Array) -> jax.Array:
    """The value at `part` of the way from low (0) to high (1)."""
    return low + (high - low) * part


def half_cosine(left: jax.Array) -> jax.Array:
    """(1 - cos π·left) / 2, from 0 to 1 as `left` goes from 0 to 1."""
    return jnp.sin(0.5 * jnp.pi * left) ** 2


def as_float(number: Traced) -> jax.Array:
    """A number as a float32 array, traced or not."""
    return jnp.asarray(number, jnp.float32)
