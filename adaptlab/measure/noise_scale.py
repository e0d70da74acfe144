"""The gradient noise scale: how many examples a batch needs before more of them stop helping.

Letters: N batches, M parts of a batch.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import tree
from adaptlab.config import GIVEN
from adaptlab.measure.measurement import Measurement
from adaptlab.rng import key_for

__all__ = ["BatchSizeFit", "batch_efficiency", "fit_critical_batch_size", "gradient_noise", "ratio_interval"]

Objective = Callable[[Any, Any, Any, jax.Array], Any]
"""`(delta, base, batch, key) -> Mean`, see `adaptlab.train.make_objective`."""


Series = Sequence[float] | np.ndarray


class _Sums(NamedTuple):
    count: jax.Array
    signal: jax.Array
    noise: jax.Array
    signal_signal: jax.Array
    noise_noise: jax.Array
    signal_noise: jax.Array


def gradient_noise(
    objective: Annotated[Objective, GIVEN], parts: int, *, level: float = 0.95, seed: int = 0
) -> Measurement:
    """Measure the simple noise scale B = tr Σ / |G|² (arXiv:1812.06162, eq. 2.9).

    G is the gradient of the mean loss over all data and Σ the covariance of one example's gradient. A batch of weight W
    is cut in M parts of weights w_i. With G_i the gradient of a part and G_W that of the whole, and 1/w the mean of
    1/w_i, E|G_i|² = |G|² + tr Σ / w_i gives unbiased estimates (app. A.1, here for any weights):

        signal = (W |G_W|² - w mean_i |G_i|²) / (W - w)                estimates |G|²
        noise  = (mean_i |G_i|² - |G_W|²) / (1/w - 1/W)                estimates tr Σ

    Both are averaged over N batches before they are divided. The ratio of two means is biased by O(1/N); its interval
    is Fieller's (`ratio_interval`), which has no upper end while |G|² could be zero: then more batches are needed.

    The unit is that of weights: targets (tokens) of a language model, texts of a classifier. Tokens of a row are not
    independent, so that tr Σ of a token holds what they have in common.

    Metrics: `noise_scale`, `noise_scale_low`, `noise_scale_high`, `signal`, `noise`, and `batches`, N.

    Args:
      objective: `(delta, base, batch, key) -> Mean`; its gradient is that by delta. The measured params are the pair
        (delta, base): with `make_probe`, `bind=lambda numbers, base, delta: (delta, base)`.
      parts: M, at least 2; divides the batch's rows. Each part must hold a target.
      level: the probability that the interval covers B, for normal estimates.
      seed: of what the objective draws, such as dropout; the same in each part.

    Raises:
      ValueError: fewer than two parts, a level that is no probability, or rows that M does not divide.
    """
    if parts < 2 or not 0 < level < 1:
        raise ValueError(f"parts={parts} must be at least 2, and level={level} between 0 and 1.")

    def cut(x: jax.Array) -> jax.Array:
        if x.shape[0] % parts:
            raise ValueError(f"parts={parts} does not divide the {x.shape[0]} rows of a batch.")
        return x.reshape(parts, x.shape[0] // parts, *x.shape[1:])

    def update(state: _Sums, params: Any, batch: Any) -> _Sums:
        delta, base = params
        key = key_for(seed, "gradient_noise")

        def add(total: Any, part: Any) -> tuple[Any, Any]:
            def summed(delta: Any) -> tuple[Any, Any]:
                mean = objective(delta, base, part, key)
                return mean.sum, mean.weight

            gradient, weight = jax.grad(summed, has_aux=True)(delta)
            return jax.tree.map(jnp.add, total, gradient), (tree.dot(gradient, gradient) / weight**2, weight)

        whole, (square_M, weight_M) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, delta), jax.tree.map(cut, batch))
        large, small = jnp.sum(weight_M), 1.0 / jnp.mean(1.0 / weight_M)
        square_W, square_w = tree.dot(whole, whole) / large**2, jnp.mean(square_M)
        signal = (large * square_W - small * square_w) / (large - small)
        noise = (square_w - square_W) / (1.0 / small - 1.0 / large)
        found = (jnp.ones(()), signal, noise, signal**2, noise**2, signal * noise)
        return _Sums(*(s + x for s, x in zip(state, found, strict=True)))

    def finish(state: _Sums) -> dict[str, float]:
        n, signal, noise = float(state.count), float(state.signal / state.count), float(state.noise / state.count)
        moments = np.array([[state.noise_noise, state.signal_noise], [state.signal_noise, state.signal_signal]], float)
        mean = np.array([noise, signal])
        # Of the means: the covariance of one batch's estimates over N.
        covariance = (moments / n - np.outer(mean, mean)) / (n - 1) if n > 1 else np.full((2, 2), np.nan)
        low, high = ratio_interval(noise, signal, covariance, n - 1, level)
        low, scale = max(low, 0.0), noise / signal if signal > 0 else math.nan
        names = ("noise_scale", "noise_scale_low", "noise_scale_high", "signal", "noise", "batches")
        return dict(zip(names, (scale, low, high, signal, noise, n), strict=True))

    return Measurement(lambda: _Sums(*jnp.zeros(6)), update, finish)


def ratio_interval(a: float, b: float, covariance: np.ndarray, df: float, level: float = 0.95) -> tuple[float, float]:
    """Return Fieller's interval of E[a] / E[b]: the ratios r with |a - r b| ≤ t · se(a - r b).

    These are the r with (b² - t² v_b) r² - 2 (a b - t² c) r + (a² - t² v_a) ≤ 0.

    Args:
      a: the numerator's mean.
      b: the denominator's.
      covariance: [[v_a, c], [c, v_b]] of the two means.
      df: the degrees of freedom it was estimated with.
      level: the probability that the interval covers the ratio.

    Returns:
      low and high. Where b does not differ from zero, high is infinite, and low the least that is above the gap in what
      is possible (minus infinity if there is no gap). Both are nan where nothing is known.

    Reference: Fieller (1954), "Some problems in interval estimation", JRSS B 16.
    """
    if df < 1 or not np.isfinite(covariance).all():
        return math.nan, math.nan
    from scipy.special import stdtrit

    t2 = float(stdtrit(df, (1 + level) / 2)) ** 2
    (v_a, c), (_, v_b) = covariance.tolist()
    second, first, zeroth = b * b - t2 * v_b, a * b - t2 * c, a * a - t2 * v_a
    inside = first * first - second * zeroth
    if second > 0:
        root = math.sqrt(max(inside, 0.0))
        return (first - root) / second, (first + root) / second
    return ((first - math.sqrt(inside)) / second if second < 0 <= inside else -math.inf), math.inf


class BatchSizeFit(NamedTuple):
    """The hyperbola between steps and examples to one loss.

    Attributes:
      batch_size: B_crit, in the unit of the batch sizes.
      steps: S_min, the fewest updates, at an infinite batch.
      examples: E_min = B_crit S_min, the fewest examples, at a vanishing batch.
    """

    batch_size: float
    steps: float
    examples: float


def batch_efficiency(noise_scale: float, batch_size: float) -> float:
    """Return 1 / (1 + B_noise / B): an update's progress at batch size B beside that of the whole gradient.

    It is one half at B = B_noise (arXiv:1812.06162, eq. 2.7).

    >>> batch_efficiency(noise_scale=100.0, batch_size=100.0)
    0.5
    """
    return 1.0 / (1.0 + noise_scale / batch_size)


def fit_critical_batch_size(batch_sizes: Series, steps: Series) -> BatchSizeFit:
    """Fit (S / S_min - 1) (E / E_min - 1) = 1 (arXiv:1812.06162, eq. 2.11) to runs that reached one loss.

    With E = B S it is S = S_min (1 + B_crit / B); the squares of the residuals of ln S are least.

    Args:
      batch_sizes: B of each run.
      steps: S, the updates that it took.

    Raises:
      ValueError: fewer than two different batch sizes, or numbers that are not positive.
    """
    B, S = np.asarray(batch_sizes, np.float64), np.asarray(steps, np.float64)
    if B.shape != S.shape or len(set(B.tolist())) < 2 or (np.minimum(B, S) <= 0).any():
        raise ValueError(f"Positive steps at two or more batch sizes are needed; got {B.tolist()} and {S.tolist()}.")
    from scipy.optimize import least_squares

    def residuals(log: np.ndarray) -> np.ndarray:
        return log[0] + np.log1p(np.exp(log[1]) / B) - np.log(S)

    found = least_squares(residuals, np.log([S.min(), np.median(B)]), x_scale="jac").x
    s_min, b_crit = np.exp(found)
    return BatchSizeFit(float(b_crit), float(s_min), float(b_crit * s_min))
