"""Statistics that add up: means as (sum, weight) pairs, and Student intervals over seeds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

__all__ = ["Interval", "Mean", "interval", "merge", "paired_interval"]


Values = Sequence[float | np.number] | np.ndarray


class Mean(NamedTuple):
    """A weighted mean that has not been divided yet, so that parts of any size can be merged exactly.

    A pytree of two arrays: it may cross `jit`, `vmap`, `scan` and `psum`.

    >>> a, b = Mean(sum=6.0, weight=2.0), Mean(sum=3.0, weight=4.0)
    >>> float(merge(a, b).value)
    1.5
    >>> float(Mean.empty().value)
    nan
    """

    sum: ArrayLike
    weight: ArrayLike

    @staticmethod
    def empty(shape: tuple[int, ...] = ()) -> "Mean":
        """The neutral element of `merge`, in float32."""
        return Mean(jnp.zeros(shape), jnp.zeros(shape))

    @property
    def value(self) -> jax.Array:
        """sum / weight, or nan where nothing was seen."""
        # The inner `where` keeps 0/0 out of the gradient.
        some = jnp.asarray(self.weight) != 0
        return jnp.where(some, self.sum / jnp.where(some, self.weight, 1.0), jnp.nan)


def merge(a: Mean, b: Mean) -> Mean:
    """The mean of everything that either has seen."""
    return Mean(jnp.add(a.sum, b.sum), jnp.add(a.weight, b.weight))


class Interval(NamedTuple):
    """A sample mean and its confidence interval.

    `low`, `high` and the sample standard deviation `sd` are nan when `n` is under 2: one run says nothing
    about the spread between runs.
    """

    mean: float
    low: float
    high: float
    n: int
    sd: float


def interval(values: Values, level: float = 0.95) -> Interval:
    """Student's confidence interval of the mean of independent, roughly normal values.

        mean +- t(level, n-1) * sd / sqrt(n),   sd^2 = sum (x - mean)^2 / (n - 1)

    Args:
      values: one number for each run (seed); all must be present, so a nan gives nan.
      level: the probability that the interval covers the true mean.

    >>> i = interval([1.0, 2.0, 3.0])
    >>> i.mean, i.n, round(i.low, 4), round(i.high, 4)
    (2.0, 3, -0.4841, 4.4841)
    >>> interval([1.0])
    Interval(mean=1.0, low=nan, high=nan, n=1, sd=nan)
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}; 0.95 is usual.")
    x = np.asarray(values, np.float64)
    if x.ndim != 1:
        raise ValueError(f"values must be one-dimensional, one number for each run; got shape {x.shape}.")
    n, mean = len(x), float(x.mean()) if len(x) else math.nan
    if n < 2 or not np.isfinite(x).all():
        return Interval(mean, math.nan, math.nan, n, math.nan)
    from scipy.special import stdtrit  # here, so that importing this module stays cheap

    sd = float(x.std(ddof=1))
    half = float(stdtrit(n - 1, (1 + level) / 2)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, sd)


def paired_interval(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, level: float = 0.95) -> Interval:
    """The interval of the mean difference b - a of runs that share a seed, in the same order.

    Pairing removes what the seed does to both: the batches and their order.

    >>> paired_interval([1.0, 5.0, 9.0], [2.0, 6.0, 10.0])
    Interval(mean=1.0, low=1.0, high=1.0, n=3, sd=0.0)
    """
    if len(a) != len(b):
        raise ValueError(f"Paired values need the same runs on both sides; got {len(a)} and {len(b)}.")
    return interval(np.asarray(b, np.float64) - np.asarray(a, np.float64), level)
