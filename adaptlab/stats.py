"""Statistics that add up: means as (sum, weight) pairs, and Student intervals over seeds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

__all__ = ["Estimate", "Interval", "Mean", "estimate", "interval", "merge", "paired_interval", "welch"]


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


class Estimate(NamedTuple):
    """A mean with its standard error, from which an interval at any level follows.

    Attributes:
      mean: the estimate.
      se: its standard error; nan where the spread is not known.
      df: the degrees of freedom of `se`.
      n: the number of values; of two independent groups, of the smaller one.
      sd: the standard deviation of one value; of two groups, of the difference of one value from each.
    """

    mean: float
    se: float
    df: float
    n: int
    sd: float

    def interval(self, level: float = 0.95) -> Interval:
        """Student's interval: mean +- t(level, df) * se."""
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level}; 0.95 is usual.")
        if not math.isfinite(self.se):
            return Interval(self.mean, math.nan, math.nan, self.n, math.nan)
        from scipy.special import stdtrit  # here, so that importing this module stays cheap

        half = float(stdtrit(self.df, (1 + level) / 2)) * self.se
        return Interval(self.mean, self.mean - half, self.mean + half, self.n, self.sd)

    def p_value(self, distance: float) -> float:
        """The smallest 1 - level at which the interval is at most `distance` wide to each side.

            p = P(|t_df| >= distance / se)

        The two-sided p-value of Student's test against a value that far from the mean.
        """
        if not math.isfinite(self.se):
            return math.nan
        from scipy.special import stdtr

        if self.se == 0:
            return 0.0 if distance > 0 else 1.0
        return 2 * float(stdtr(self.df, -abs(distance) / self.se))


def estimate(values: Values) -> Estimate:
    """Return the mean of independent values and its standard error, sd / sqrt(n) with n - 1 degrees of freedom.

        sd^2 = sum (x - mean)^2 / (n - 1)

    Args:
      values: one number for each run (seed); all must be present, so a nan gives nan.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1:
        raise ValueError(f"values must be one-dimensional, one number for each run; got shape {x.shape}.")
    n, mean = len(x), float(x.mean()) if len(x) else math.nan
    if n < 2 or not np.isfinite(x).all():
        return Estimate(mean, math.nan, math.nan, n, math.nan)
    sd = float(x.std(ddof=1))
    return Estimate(mean, sd / math.sqrt(n), n - 1, n, sd)


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
    return estimate(values).interval(level)


def paired_interval(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, level: float = 0.95) -> Interval:
    """The interval of the mean difference b - a of runs that share a seed, in the same order.

    Pairing removes what the seed does to both: the batches and their order.

    >>> paired_interval([1.0, 5.0, 9.0], [2.0, 6.0, 10.0])
    Interval(mean=1.0, low=1.0, high=1.0, n=3, sd=0.0)
    """
    if len(a) != len(b):
        raise ValueError(f"Paired values need the same runs on both sides; got {len(a)} and {len(b)}.")
    return interval(np.asarray(b, np.float64) - np.asarray(a, np.float64), level)


def welch(a: Values, b: Values) -> Estimate:
    """Estimate mean(b) - mean(a) of independent groups whose variances may differ.

        se^2 = v_a + v_b,   v = sd^2 / n,   df = (v_a + v_b)^2 / (v_a^2 / (n_a - 1) + v_b^2 / (n_b - 1))

    For runs that share no seeds; those that do are compared by `paired_interval`, which is tighter.

    Reference: Welch (1947), "The generalization of 'Student's' problem when several different population variances
    are involved", Biometrika 34.

    >>> difference = welch([1.0, 3.0], [4.0, 6.0])
    >>> difference.mean, difference.sd, round(difference.df, 6)  # the same variances: df = n_a + n_b - 2
    (3.0, 2.0, 2.0)
    """
    x, y = estimate(a), estimate(b)
    mean, n, se = y.mean - x.mean, min(x.n, y.n), math.hypot(x.se, y.se)
    if not math.isfinite(se):
        return Estimate(mean, math.nan, math.nan, n, math.nan)
    spread = x.se**4 / x.df + y.se**4 / y.df
    df = se**4 / spread if spread else x.df + y.df
    return Estimate(mean, se, df, n, math.hypot(x.sd, y.sd))
