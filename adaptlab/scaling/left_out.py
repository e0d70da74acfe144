"""How well a law of annealing predicts a schedule that it was not fitted to, from the fitted ones alone."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from adaptlab.scaling.annealing import Exposure
from adaptlab.scaling.fit import Fit, predict
from adaptlab.scaling.form import values_of
from adaptlab.scaling.minimise import Minimum
from adaptlab.scaling.objective import data_of, double_precision

__all__ = ["leave_schedules_out"]


def leave_schedules_out(fitted: Fit, exposure: Exposure, again: Callable[..., Minimum]) -> dict[str, float]:
    """Predict each schedule by the law fitted to the others: `{schedule: mean relative error}`.

    Args:
      fitted: to some rows of the exposure.
      exposure: the rows.
      again: `(weights=(S, n)) -> Minimum`, the same fit under other weights: `partial(refit, fitted)`, or of an
        early-stopped fit `partial(refit_early_stopped, exposure, fitted.points, …)` with its options.

    Returns:
      an entry for each schedule; nan where the others cannot determine the law: they have too few rows, or none of
      their learning rates falls and that of the schedule does. Empty if there is only one schedule.
    """
    points = fitted.points
    rows, weights = points.x["row"].astype(int), data_of(points, fitted.space).weights
    schedule, lr = exposure.name[rows], exposure.lr[rows]
    names = list(dict.fromkeys(schedule[weights > 0]))
    if len(names) < 2:
        return {}
    out_SN = np.stack([schedule == name for name in names])
    ends = again(weights=np.where(out_SN, 0.0, weights))
    found = {}
    for name, out, theta in zip(names, out_SN, ends.theta, strict=True):
        rest, held = ~out & (weights > 0), out & (weights > 0)
        unknown = np.ptp(lr[rest]) == 0 < np.ptp(lr[held]) or rest.sum() <= len(fitted.form.parameters)
        found[str(name)] = float("nan") if unknown else _error(fitted, theta, held)
    return found


def _error(fitted: Fit, theta: Any, held: np.ndarray) -> float:
    """The mean relative error at the points held out."""
    with double_precision():
        values = {name: float(value) for name, value in values_of(fitted.form, jnp.asarray(theta)).items()}
    predicted = predict(fitted._replace(values=values), fitted.points.x)
    return float(np.abs(predicted[held] / fitted.points.y[held] - 1).mean())
