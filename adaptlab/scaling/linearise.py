"""A fit seen locally: its residuals, their derivatives, and the factors that turn those into variances."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri
from scipy.stats import norm

from adaptlab.scaling.fit import Fit, refuse_unless_minimum
from adaptlab.scaling.form import Form
from adaptlab.scaling.losses import Loss
from adaptlab.scaling.objective import Space, data_of

__all__ = ["Linearised", "coordinates_of", "curvatures", "from_coordinates", "gradients", "linearise", "noiseless"]


class Linearised(NamedTuple):
    """An M-estimator around its estimate; n points, p parameters.

    The coordinates c are the parameters as they are searched: log value for those on a log scale, else the value.

    Attributes:
      names: (p,) the parameters.
      coordinates: (p,).
      residuals: (n,) u_i = (f(y_i) - f(prediction_i)) / (s sigma_i).
      jacobian: (n, p) g_i = d f(prediction_i) / d c / (s sigma_i).
      weights: (n,).
      psi: (n,) rho'(u_i).
      curvatures: (n,) rho''(u_i), smoothed where the loss has a kink, see `curvatures`.
      curvature: their mean.
      kink: whether the loss is narrower than the noise, so that the estimate is all but the median.
      inflation: Huber's K for small samples, see `linearise`.
      free: (p,) False for a parameter on its bound, which is taken as known.
      points: how many points have a weight.
    """

    names: tuple[str, ...]
    coordinates: np.ndarray
    residuals: np.ndarray
    jacobian: np.ndarray
    weights: np.ndarray
    psi: np.ndarray
    curvatures: np.ndarray
    curvature: float
    kink: bool
    inflation: float
    free: np.ndarray
    points: int

    @property
    def dof(self) -> int:
        """Degrees of freedom: points less the parameters that are free."""
        return self.points - int(self.free.sum())

    @property
    def information(self) -> np.ndarray:
        """(p, p), sum_i w_i g_i g_i^T: the Gauss-Newton matrix without the loss's curvature."""
        return np.einsum("n,ni,nj->ij", self.weights, self.jacobian, self.jacobian)

    @property
    def dispersion(self) -> float:
        """The variance factor of the M-estimator, tau^2 = K^2 [sum w psi^2 / (n - p)] / mean(rho'')^2.

        With the squared loss it is the residuals' variance, and tau^2 information^-1 the covariance (Huber 1981,
        "Robust statistics", equation 7.6.6).
        """
        return self.inflation**2 * _spread(self) / self.curvature**2

    @property
    def calibration(self) -> float:
        """phi = K^2 [sum w psi^2 / (n - p)] / mean(rho''): 2 (increase of the objective) / phi has an F distribution.

        Reference: Schrader and Hettmansperger (1980), "Robust analysis of variance based upon a likelihood ratio
        criterion", Biometrika 67, equation 2.4.
        """
        return self.inflation**2 * _spread(self) / self.curvature


def linearise(fit: Fit) -> Linearised:
    """Linearise a fit at its estimate.

        K = 1 + (p / n) var(rho'') / mean(rho'')^2

    K corrects the variance of a robust estimate in small samples to first order in p / n (Huber 1981, equation 7.6.7).
    It is 1 for squared loss; and 1 where the loss is narrower than the noise, as there mean(rho'') is estimated from
    the points that the fit does not pass through.

    Raises:
      ValueError: no more points than parameters, or a fit that is no minimum.
    """
    refuse_unless_minimum(fit, "Standard errors, intervals, profiles and diagnoses")
    data, loss = data_of(fit.points, fit.space), fit.loss
    c, raw = coordinates_of(fit.form, fit.values), gradients(fit, fit.points.x)
    free = ~_on_bounds(fit, raw)
    s = np.exp(fit.theta[-1]) if loss.free_scale else 1.0
    u = fit.residuals / (data.sigma * s)
    jacobian = raw / (data.sigma * s)[:, None]
    some = data.weights > 0
    points, p = int(some.sum()), int(free.sum())
    if points <= p:
        raise ValueError(f"{points} points leave no degree of freedom beside {p} parameters; add points.")
    psi, second = _derivatives(loss, u)
    kink, smooth = curvatures(loss, u, data.weights, p)
    mean = float(np.average(smooth, weights=data.weights))
    inflation = 1.0 if kink else 1 + p / points * float(np.var(second[some])) / mean**2
    return Linearised(fit.form.names, c, u, jacobian, data.weights, psi, smooth, mean, kink, inflation, free, points)


def curvatures(loss: Loss, u: np.ndarray, weights: np.ndarray, p: int) -> tuple[bool, np.ndarray]:
    """Estimate the expected curvature of the loss at each point, also where the loss is all but |u|.

        k_i = [psi(u_i + h) - psi(u_i - h)] / (2 h),   P(|u| < h) = 2 b(n)

    A Huber loss narrower than the noise has curvature at the few points within delta only: its mean is then the density
    of the noise at 0, which needs a bandwidth, here that of Hall and Sheather (1988) for the sparsity of a median.
    The fit passes through about p points, whose residuals tell nothing of the density: bandwidth and mean are those
    of the others, and the k_i are scaled to that mean.

    Args:
      loss: the loss.
      u: (n,) standardised residuals.
      weights: (n,).
      p: the number of parameters.

    Returns:
      whether the loss is narrower than the bandwidth, and k (n,).

    Reference: Koenker (2005), "Quantile regression", sections 3.4.1 (bandwidth) and 3.4.2 (Powell's kernel).
    """
    size = np.where(weights > 0, np.abs(u), np.inf)
    n = int((weights > 0).sum()) - p
    rest = np.argsort(size)[p : p + n]
    # At the median z_{0.975}^(2/3) (1.5 phi(0)^2)^(1/3) n^(-1/3); never beyond what a handful of points have.
    share = min(2 * ndtri(0.975) ** (2 / 3) * (1.5 * norm.pdf(0) ** 2) ** (1 / 3) * n ** (-1 / 3), 0.9)
    h = max(float(np.quantile(size[rest], share)), 1e-3 * min(loss.width, 1.0))  # an exact fit has no spread
    (up, _), (down, _) = _derivatives(loss, u + h), _derivatives(loss, u - h)
    k, kink = (up - down) / (2 * h), loss.width < h
    if kink:
        k = k * np.average(k[rest], weights=weights[rest]) / np.average(k, weights=weights)
    return kink, k


def gradients(fit: Fit, x: Any) -> np.ndarray:
    """(m, p), the derivative of f(prediction) at m inputs with respect to the coordinates."""
    with jax.enable_x64(True):
        columns = {name: np.asarray(x[name], np.float64) for name in fit.form.inputs}
        return np.asarray(_gradients(fit.form, fit.space)(coordinates_of(fit.form, fit.values), columns))


@functools.cache
def _gradients(form: Form, space: Space) -> Callable[..., jax.Array]:
    """The compiled `(coordinates, x) -> (m, p)`."""

    def predicted(c: jax.Array, x: Any) -> jax.Array:
        y = form.predict(from_coordinates(form, c), x)
        return jnp.log(y) if space == "log" else y

    return jax.jit(jax.jacfwd(predicted))


def coordinates_of(form: Form, values: Any) -> np.ndarray:
    """(..., p): log value for parameters that are searched on a log scale, else the value."""
    columns = [np.asarray(values[p.name], np.float64) for p in form.parameters]
    with np.errstate(divide="ignore"):
        columns = [np.log(v) if p.log else v for p, v in zip(form.parameters, columns, strict=True)]
    return np.stack(np.broadcast_arrays(*columns), axis=-1)


def from_coordinates(form: Form, c: Any) -> dict[str, Any]:
    """The inverse of `coordinates_of`, in jax.numpy for traced coordinates and in NumPy otherwise."""
    exp = np.exp if isinstance(c, np.ndarray) else jnp.exp
    with np.errstate(over="ignore"):  # an amplitude that the points do not limit may be infinite
        return {p.name: exp(c[..., i]) if p.log else c[..., i] for i, p in enumerate(form.parameters)}


def _on_bounds(fit: Fit, gradient: np.ndarray) -> np.ndarray:
    """(p,), whether a parameter ended on a bound: within 1e-5 of it, or so small that it does not count.

    An amplitude on a log scale has no bound to reach above 0; it counts as there once it changes no prediction by more
    than 1e-6 of itself.
    """
    effect = np.abs(gradient).max(axis=0)
    scale = 1.0 if fit.space == "log" else float(np.abs(fit.points.y).max())
    there = []
    for p, change in zip(fit.form.parameters, effect, strict=True):
        value = fit.values[p.name]
        width = p.high - p.low if np.isfinite(p.high - p.low) else 1.0
        close = min(value - p.low, p.high - value) < 1e-5 * width
        there.append((change < 1e-6 * scale) if p.log and not np.isfinite(p.high) else close)
    return np.array(there)


def _derivatives(loss: Loss, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """rho' and rho'' of (n,) residuals."""
    with jax.enable_x64(True):
        first, second = _derivatives_of(loss.rho)(np.asarray(u, np.float64), np.float64(loss.width))
        return np.asarray(first), np.asarray(second)


@functools.cache
def _derivatives_of(rho: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    first = jax.grad(rho)
    return jax.jit(jax.vmap(lambda u, width: (first(u, width), jax.grad(first)(u, width)), (0, None)))


def noiseless(fit: Fit) -> bool:
    """Whether the law passes through all points, to rounding: there is no noise to be unsure about."""
    data = data_of(fit.points, fit.space)
    some = data.weights > 0
    return bool(np.abs(fit.residuals[some]).max() < 1e-9 * max(1.0, np.abs(data.y[some]).max()))


def _spread(at: Linearised) -> float:
    return float(np.sum(at.weights * at.psi**2) / at.dof)
