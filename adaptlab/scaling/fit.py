"""Fitting a law to points: many starts, one program, and the best of them to machine precision."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from adaptlab.scaling.check import checked
from adaptlab.scaling.form import Form, theta_of, values_of
from adaptlab.scaling.losses import Loss, LossName, named_loss, profile_likelihood
from adaptlab.scaling.minimise import Minimum, minimise
from adaptlab.scaling.objective import Data, Space, data_of, double_precision, make_residuals
from adaptlab.scaling.points import Points
from adaptlab.scaling.search import Found, search
from adaptlab.scaling.starts import Starts, start_values

__all__ = ["Fit", "assemble", "fit", "fit_groups", "predict", "refit", "refuse_unless_minimum"]


class Fit(NamedTuple):
    """A law fitted to points.

    Attributes:
      form, points, loss, space: what was fitted to what, and how; `points` as validated.
      values: `{parameter: value}`.
      theta: `(q,)` the same unconstrained, see `Parameter`, and at the end log s if the loss has a free scale.
      objective: what was minimised: the sum (or the mean) over points of the loss, or the negative log-likelihood.
      log_likelihood: of f(y), with the noise's scale or the loss's temperature at its best; nan if there is none.
      scale: the noise's standard deviation factor: s, or the square root of the temperature.
      residuals: `(n,)`, f(y) - f(prediction), not divided by sigma or s.
      starts_agree: the share of the starts that were refined to the end which came to this objective within 1e-6 of it.
      converged: whether the gradient vanishes there to rounding.
      others: `(k, q)` where other refined starts ended, best first: warm starts for refits, and local optima.
      warnings: what a reader of the fit should know, in sentences.
      minimum: whether the values are meant to minimise the objective. Those of `fit_early_stopped` are not, so that
        nothing which rests on a minimum can be said of them: no standard errors, no profiles, no AICc.
    """

    form: Form
    points: Points
    loss: Loss
    space: Space
    values: dict[str, float]
    theta: np.ndarray
    objective: float
    log_likelihood: float
    scale: float
    residuals: np.ndarray
    starts_agree: float
    converged: bool
    others: np.ndarray
    warnings: tuple[str, ...]
    minimum: bool = True


def fit(
    form: Form,
    points: Points,
    *,
    loss: LossName | Loss = "huber",
    delta: float = 1e-3,
    space: Space = "log",
    reduce: Literal["sum", "mean"] = "sum",
    starts: Starts = 512,
    seed: int = 0,
) -> Fit:
    """Estimate a law's parameters.

        minimise over theta   sum_i w_i rho((f(y_i) - f(predict(theta, x_i))) / sigma_i),   f = log or identity

    Args:
      form: the law, see `adaptlab.scaling.forms`.
      points: what it is fitted to.
      loss: "huber", "huber_likelihood", "squared", "log_cosh", "tukey" or a `Loss`.
      delta: where a named loss ceases to be quadratic, in the units of f(y) / sigma.
      space: "log" compares log y, "linear" y itself.
      reduce: whether `objective` is the sum or the weighted mean over points. The law is the same.
      starts: how many starts are drawn from the form's ranges; or a grid `{parameter: values}`, of which every
        combination is a start; or an array of starts, `(starts, parameters)`.
      seed: of the starts that are drawn.

    Raises:
      ValueError: the points cannot determine the law: fewer than its parameters plus one, an input that it reads is
        missing or never varies, or y is not positive in log space.
    """
    return fit_groups(
        form, {None: points}, loss=loss, delta=delta, space=space, reduce=reduce, starts=starts, seed=seed
    )[None]


def fit_groups(
    form: Form,
    groups: Mapping[Any, Points],
    *,
    loss: LossName | Loss = "huber",
    delta: float = 1e-3,
    space: Space = "log",
    reduce: Literal["sum", "mean"] = "sum",
    starts: Starts = 512,
    seed: int = 0,
) -> dict[Any, Fit]:
    """Fit a law to each group of points, `{key: Points} -> {key: Fit}`, all in one program; the rest is as in `fit`."""
    if reduce not in ("sum", "mean"):
        raise ValueError(f"reduce must be 'sum' or 'mean'; got {reduce!r}.")
    if not groups:
        raise ValueError("There is no group to fit.")
    chosen = named_loss(loss, delta)
    sound = {key: _checked_group(form, points, space, key) for key, points in groups.items()}
    data = [data_of(points, space) for points, _ in sound.values()]
    thetas = [
        _thetas(form, chosen, points, d, starts, seed) for (points, _), d in zip(sound.values(), data, strict=True)
    ]
    found = search(form, chosen, space, _stacked(data), np.stack(thetas))
    return {
        key: assemble(form, chosen, space, points, one, reduce=reduce, warnings=warnings)
        for (key, (points, warnings)), one in zip(sound.items(), found, strict=True)
    }


def refit(fitted: Fit, *, weights: Any = None, y: Any = None, free: Any = None, starts: int = 4) -> Minimum:
    """Fit the law again to R other weightings or outcomes of the same points, from where it was: one program.

    Args:
      fitted: the fit; each refit begins at its theta and at the best `starts - 1` of its `others`, and the best counts.
      weights: `(R, n)`, instead of the points' weights. A bootstrap draws counts, cross-validation zeros.
      y: `(R, n)`, instead of the points' y.
      free: `(R, q)` or `(q,)`, False where an entry of theta stays as it is.
      starts: how many warm starts for each.

    Returns:
      the best of the warm starts, `theta` `(R, q)` and so on; the objective is the sum.
    """
    refuse_unless_minimum(fitted, "Refits that minimise")
    if weights is None and y is None:
        raise ValueError(
            "refit needs other weights (R, n) or other outcomes y (R, n); fit() fits the points themselves."
        )
    replicates = len(weights) if weights is not None else len(y)
    begins = np.concatenate([fitted.theta[None], fitted.others[: max(0, starts - 1)]])
    theta = np.broadcast_to(begins, (replicates, *begins.shape))

    def each(values: Any) -> Any:
        return None if values is None else np.asarray(values)[..., None, :]

    options = {"weights": each(weights), "y": each(y), "free": each(free)}
    ends = minimise(fitted.form, fitted.points, theta, loss=fitted.loss, space=fitted.space, **options)
    best = np.argmin(ends.objective, axis=1)
    return Minimum(*(values[np.arange(replicates), best] for values in ends))


def predict(fitted: Fit, x: Mapping[str, Any]) -> np.ndarray:
    """Return the law's y at inputs, `{input: (m,)} -> (m,)`."""
    with double_precision():
        columns = {name: np.asarray(x[name], np.float64) for name in fitted.form.inputs}
        return np.asarray(fitted.form.predict(fitted.values, columns))


def _checked_group(form: Form, points: Points, space: Space, key: Any) -> tuple[Points, tuple[str, ...]]:
    try:
        return checked(form, points, space)
    except ValueError as error:
        if key is None:
            raise
        raise ValueError(f"Group {key!r}: {error}") from error


def _thetas(form: Form, loss: Loss, points: Points, data: Data, starts: Starts, seed: int) -> np.ndarray:
    """The starts of one data set, `(S, q)`."""
    theta = theta_of(form, start_values(form, points, starts, seed))
    if not loss.free_scale:
        return theta
    # A tenth of what there is to explain; with a small delta s is delta times the mean of |f(y) - f(prediction)|.
    scale = 0.1 * float(np.std(data.y / data.sigma)) * min(1.0, loss.width)
    return np.column_stack([theta, np.full(len(theta), np.log(scale))])


def _stacked(data: list[Data]) -> Data:
    """Data sets of any length as one, `(G, n)`: the shorter ones are filled up with their last point at weight 0."""
    n = max(len(d.y) for d in data)
    if len(data) == 1:
        return Data(data[0].x, data[0].y[None], data[0].sigma[None], data[0].weights[None])

    def filled(column: np.ndarray, zero: bool = False) -> np.ndarray:
        return np.pad(column, (0, n - len(column)), mode="constant" if zero else "edge")

    x = {name: np.stack([filled(d.x[name]) for d in data]) for name in data[0].x}
    y, sigma = (np.stack([filled(getattr(d, name)) for d in data]) for name in ("y", "sigma"))
    return Data(x, y, sigma, np.stack([filled(d.weights, zero=True) for d in data]))


def refuse_unless_minimum(fitted: Fit, what: str) -> None:
    """Raise a ValueError if a fit is no minimum, and `what` (the sentence's subject, plural) would need one."""
    if not fitted.minimum:
        raise ValueError(
            f"{what} need a minimum of the objective, and this fit of {fitted.form.name} stopped early, before one. "
            "Take fit(), which minimises; or judge the early-stopped fit by leave_schedules_out()."
        )


def assemble(
    form: Form,
    loss: Loss,
    space: Space,
    points: Points,
    found: Found,
    *,
    reduce: Literal["sum", "mean"] = "sum",
    warnings: tuple[str, ...] = (),
    minimum: bool = True,
) -> Fit:
    """Return what a search found as a `Fit`; the other arguments are its fields."""
    theta: Any = found.theta
    data = data_of(points, space)
    count = float(np.sum(data.weights))
    with double_precision():
        values = {name: float(value) for name, value in values_of(form, theta).items()}
        u = np.asarray(make_residuals(form, loss._replace(free_scale=False), space)(theta, data))
    if loss.free_scale:
        likelihood, scale = -found.objective, float(np.exp(theta[-1]))
    else:
        likelihood, temperature = profile_likelihood(loss, found.objective, count)
        scale = temperature**0.5
    likelihood -= float(np.sum(data.weights * np.log(data.sigma)))
    if minimum and not found.converged:
        warnings = (*warnings, "The search did not converge: the points may not determine all parameters.")
    return Fit(
        form=form,
        points=points,
        loss=loss,
        space=space,
        values=values,
        theta=theta,
        objective=found.objective / (count if reduce == "mean" else 1.0),
        log_likelihood=likelihood,
        scale=scale,
        residuals=u * data.sigma,
        starts_agree=found.agree,
        converged=found.converged,
        others=found.others,
        warnings=warnings,
        minimum=minimum,
    )
