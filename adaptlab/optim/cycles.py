"""Schedules that rise and fall: cyclic, one-cycle, restarts, the slanted triangle and the learning-rate range test.

They begin with a value of their own, which update 0 has (step 0 counts as 0). A momentum schedule has the same type as
any schedule, but its value is the momentum itself.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from adaptlab.config import NonNegative, Positive, Share, Traced
from adaptlab.optim.schedules import Schedule, as_float, between, counted, half_cosine, near_whole, updates, warm_up

__all__ = [
    "cosine_restarts",
    "cyclic",
    "cyclic_momentum",
    "one_cycle",
    "one_cycle_momentum",
    "range_test",
    "slanted_triangular",
]

Mode = Literal["triangular", "triangular2", "exp_range"]
Annealing = Literal["linear", "cosine"]
Rise = Literal["linear", "exponential"]


def slanted_triangular(*, cut: Share = 0.1, ratio: Traced = 32.0) -> Schedule:
    """The slanted triangle of ULMFiT (arXiv:1801.06146, eq. 3): (1 + p (ratio - 1)) / ratio.

    p rises from 0 to 1 over the first ⌊cut · T⌋ of all T updates and falls to 0 at T. (The paper's line falls below 0
    before T where cut · T is not whole; this one ends at T.)

    Args:
      cut: the fraction of all updates that rises, cut_frac.
      ratio: the highest factor over the lowest.
    """

    def schedule(step: jax.Array, total: int) -> jax.Array:
        t, top = counted(step, 0.0), jnp.maximum(1.0, jnp.floor(updates(cut, total)))
        p = jnp.minimum(t / top, (total - t) / jnp.maximum(1.0, total - top))
        return (1.0 + jnp.maximum(0.0, p) * (ratio - 1.0)) / ratio

    return schedule


def cyclic(
    *,
    up: Positive = 50.0,
    down: Positive = 50.0,
    initial: NonNegative = 0.1,
    mode: Mode = "triangular",
    decay: Traced = 0.5,
) -> Schedule:
    """Cyclical learning rates (arXiv:1506.01186, section 3): initial + (1 - initial) a(t), where a is a triangle wave.

    Args:
      up: updates from the lowest to the highest value.
      down: updates back.
      initial: the lowest factor, which update 0 has.
      mode: "triangular" keeps the height of the waves; "triangular2" multiplies it by `decay` after each cycle (the
        paper halves it); "exp_range" does so evenly, at every update.
      decay: the factor of the height per cycle of up + down updates. The paper's γ per update is
        decay^(1 / (up + down)), and `decay` holds more of its digits.

    Raises:
      ValueError: an unknown mode.
    """
    height = _waves(up, down, mode, decay)
    return lambda step, total: between(initial, 1.0, height(step))


def cyclic_momentum(
    *,
    up: Positive = 50.0,
    down: Positive = 50.0,
    low: Traced = 0.8,
    high: Traced = 0.9,
    mode: Mode = "triangular",
    decay: Traced = 0.5,
) -> Schedule:
    """The momentum that goes with `cyclic`: `high` where the learning rate is lowest, down to `low` at its peaks."""
    height = _waves(up, down, mode, decay)
    return lambda step, total: between(high, low, height(step))


def _waves(up: Positive, down: Positive, mode: str, decay: Traced) -> Any:
    if mode not in get_args(Mode):
        raise ValueError(f"cyclic: mode={mode!r} is not one of {list(get_args(Mode))}.")

    def height(step: jax.Array) -> jax.Array:
        t, cycle = counted(step, 0.0), as_float(up) + down
        number = jnp.floor(t / cycle)
        since = t - number * cycle
        wave = jnp.minimum(since / up, (cycle - since) / down)
        if mode == "triangular":
            return wave
        return wave * as_float(decay) ** (number if mode == "triangular2" else t / cycle)

    return height


def one_cycle(
    *,
    warmup: Share = 0.3,
    initial: NonNegative = 1 / 25,
    final: NonNegative = 4e-6,
    annealing: Annealing = "cosine",
    three_phase: bool = False,
) -> Schedule:
    """The 1cycle policy (arXiv:1708.07120; arXiv:1803.09820): from `initial` up to 1 and down to `final`.

    Two phases rise over the fraction `warmup` and fall over the rest; three fall back to `initial` as long as they
    rose, and then from there to `final`. The first update has `initial`, the last `final`.

    Args:
      warmup: the fraction of all updates that rises; below one half with three phases.
      initial: the first factor, 1 / div_factor in PyTorch.
      final: the last factor, initial / final_div_factor in PyTorch.
      annealing: "linear", or "cosine" for half cosines.
      three_phase: whether the last phase is one of its own.

    Raises:
      ValueError: an unknown annealing.
    """
    hill = _hill(warmup, annealing, three_phase)

    def schedule(step: jax.Array, total: int) -> jax.Array:
        height, left, falling = hill(step, total)
        foot = between(final, initial, left) if three_phase else jnp.where(falling, final, initial)
        return between(foot, 1.0, height)

    return schedule


def one_cycle_momentum(
    *,
    warmup: Share = 0.3,
    low: Traced = 0.85,
    high: Traced = 0.95,
    annealing: Annealing = "cosine",
    three_phase: bool = False,
) -> Schedule:
    """The momentum that goes with `one_cycle`: from `high` down to `low` at the peak, and back to `high`."""
    hill = _hill(warmup, annealing, three_phase)
    return lambda step, total: between(high, low, hill(step, total)[0])


def _hill(warmup: Share, annealing: str, three_phase: bool) -> Any:
    """The height, 0 to 1 and back to 0; what is left of the last of three phases, 1 to 0; whether the peak is over."""
    if annealing not in get_args(Annealing):
        raise ValueError(f"one_cycle: annealing={annealing!r} is not one of {list(get_args(Annealing))}.")
    ease = half_cosine if annealing == "cosine" else lambda part: part

    def hill(step: jax.Array, total: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        # PyTorch's phases: each begins with the update that ends the one before.
        t, last = counted(step, 0.0), total - 1.0
        top = updates(warmup, total) - 1.0
        foot = 2.0 * top if three_phase else last
        rising = jnp.clip(t / jnp.maximum(1.0, top), 0.0, 1.0)
        falling = jnp.clip((foot - t) / jnp.maximum(1.0, foot - top), 0.0, 1.0)
        left = jnp.clip((last - t) / jnp.maximum(1.0, last - foot), 0.0, 1.0)
        return ease(jnp.where(t > top, falling, rising)), ease(left), t > top

    return hill


def cosine_restarts(
    *,
    period: Positive = 100.0,
    growth: Traced = 1.0,
    warmup: Share = 0.0,
    final: NonNegative = 0.0,
    offset: Traced = 0.0,
) -> Schedule:
    """Half cosines from 1 towards `final` that jump back to 1: SGDR (arXiv:1608.03983, eq. 5).

    Args:
      period: updates of the first cosine, T₀.
      growth: each takes this many times as long as the one before, T_mult; at least 1.
      warmup: the fraction of all updates that rises linearly before.
      final: the lowest factor.
      offset: added to the step, see `adaptlab.optim.schedules`; 0, so that update 0 has factor 1, unless it warms up.
    """

    def schedule(step: jax.Array, total: int) -> jax.Array:
        n, start = counted(step, offset), updates(warmup, total)
        since, length = _in_cycle(jnp.maximum(0.0, n - start), as_float(period), as_float(growth))
        return warm_up(n, start) * between(final, 1.0, half_cosine((length - since) / length))

    return schedule


def _in_cycle(t: jax.Array, period: jax.Array, growth: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How far t is into its cycle, and how long that is: cycle k begins at T₀ (mᵏ - 1) / (m - 1)."""
    constant = growth == 1.0
    m = jnp.where(constant, 2.0, growth)  # where the formula has no value, another m stands in

    def begins(k: jax.Array) -> jax.Array:
        start = period * (m**k - 1.0) / (m - 1.0)
        return near_whole(start, 2.0**-20 * start)

    k = jnp.floor(jnp.log1p(t * (m - 1.0) / period) / jnp.log(m))
    # The quotient may fall on the wrong side of a whole number.
    k = jnp.where(t >= begins(k + 1.0), k + 1.0, jnp.where(t < begins(k), k - 1.0, k))
    since = jnp.where(constant, t - period * jnp.floor(t / period), t - begins(k))
    return since, jnp.where(constant, period, period * m**k)


def range_test(*, initial: NonNegative = 1e-5, rise: Rise = "exponential") -> Schedule:
    """The learning-rate range test (arXiv:1506.01186, section 3.3): from `initial` at update 0 to 1 at the last.

    The loss against the rising rate shows the largest rate that still trains.

    Args:
      initial: the first factor; positive for an exponential rise.
      rise: "linear" adds the same amount at every update, "exponential" multiplies by the same factor.

    Raises:
      ValueError: an unknown rise.
    """
    if rise not in get_args(Rise):
        raise ValueError(f"range_test: rise={rise!r} is not one of {list(get_args(Rise))}.")

    def schedule(step: jax.Array, total: int) -> jax.Array:
        last = max(1.0, total - 1.0)
        t = jnp.clip(counted(step, 0.0), 0.0, last)
        return as_float(initial) ** ((last - t) / last) if rise == "exponential" else between(initial, 1.0, t / last)

    return schedule
