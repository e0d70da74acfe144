"""What a fitted scaling law is reported as: the fields of `fit.json`, a table, and a sentence to quote."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from adaptlab.scaling.bootstrap import Bootstrap, bootstrap_intervals
from adaptlab.scaling.diagnosis import diagnose
from adaptlab.scaling.fit import Fit, predict
from adaptlab.scaling.points import Points
from adaptlab.scaling.prediction import prediction_intervals
from adaptlab.scaling.profile import profile_intervals
from adaptlab.scaling.sandwich import covariance, wald_intervals
from adaptlab.scaling.selection import errors

__all__ = ["fit_result", "groups_table", "law_table", "parameters_of", "quotation"]


def fit_result(
    fitted: Fit,
    *,
    held: Points | None = None,
    draws: Bootstrap | None = None,
    at: Sequence[Mapping[str, Any]] = (),
    inputs: Mapping[str, np.ndarray] | None = None,
    level: float = 0.95,
    profiled: bool = True,
) -> dict[str, Any]:
    """Return a fit as plain containers.

    Args:
      fitted: the fit.
      held: points that were held out, or None.
      draws: bootstrap refits. Without them standard errors are those of the curvature, and intervals of the profile.
      profiled: False takes these too from the curvature, for laws whose refits are slow.
      at: what predictions are called in the result, one for each row of `inputs`.
      inputs: `{input: (m,)}`, where to predict.
      level: of all intervals. Those of predictions are for a new measurement, noise included.

    Returns:
      form: the form's name.
      n_points: the points that were fitted.
      parameters: `{name: {value, stderr, low, high}}`.
      objective, log_likelihood: of the fit.
      in_sample, holdout: `{n, rmse_log, mean_relative_error, max_relative_error}`; holdout is None without `held`.
      predictions: `[{inputs, value, low, high}]`.
      diagnostics: `{identifiability: {verdict, condition, on_bounds, sentences}, starts_agree, warnings}`.

    Of a fit that is no minimum there are no standard errors, limits or verdict: they are nan and None.
    """
    return {
        "form": fitted.form.name,
        "n_points": fitted.points.n,
        "parameters": parameters_of(fitted, draws, level, profiled),
        "objective": fitted.objective,
        "log_likelihood": fitted.log_likelihood,
        "in_sample": errors(fitted, fitted.points)._asdict(),
        "holdout": None if held is None else errors(fitted, held)._asdict(),
        "predictions": _predictions(fitted, at, inputs, draws, level) if at else [],
        "diagnostics": {
            "identifiability": _identifiability(fitted),
            "starts_agree": fitted.starts_agree,
            "warnings": list(fitted.warnings),
        },
    }


def parameters_of(
    fitted: Fit, draws: Bootstrap | None, level: float, profiled: bool = True
) -> dict[str, dict[str, float]]:
    """Return `{parameter: {value, stderr, low, high}}`; what does not exist, as on a bound, is nan."""
    if not fitted.minimum:
        return {n: {"value": v, **dict.fromkeys(("stderr", "low", "high"), math.nan)} for n, v in fitted.values.items()}
    if draws is None:
        spread = covariance(fitted)
        deviations = spread.standard_errors
        exact = not spread.matrix.any()  # no residual at all: there is no noise to be unsure about
        intervals = profile_intervals if profiled and not exact else wald_intervals
        limits = intervals(fitted, level)
    else:
        deviations, limits = draws.standard_errors, bootstrap_intervals(draws, level)
    names = ("value", "stderr", "low", "high")
    rows = {name: (value, deviations[name], *limits[name]) for name, value in fitted.values.items()}
    return {name: dict(zip(names, map(float, row), strict=True)) for name, row in rows.items()}


def law_table(result: Mapping[str, Any], fitted: Fit, level: float, y: str = "value") -> Table:
    """Return the table of one law: its parameters, how well it fits, and what it predicts."""
    table = Table(title=f"{result['form']}: {fitted.form.equation}", caption=_fitted_how(fitted))
    for name in ("", "value", "s.e.", f"{level:.0%} interval", ""):
        table.add_column(name, justify="right" if name else "left")
    for p in fitted.form.parameters:
        row = result["parameters"][p.name]
        table.add_row(p.name, _digits(row["value"]), _digits(row["stderr"], 2), _interval(row), p.meaning)
    table.add_section()
    table.add_row(
        "objective", _digits(result["objective"], 6), "", "", f"log-likelihood {result['log_likelihood']:.2f}"
    )
    for name in ("in_sample", "holdout"):
        if (row := result[name]) is not None:
            relative = f"mean {row['mean_relative_error']:.3%}, at most {row['max_relative_error']:.3%}"
            label = f"rms error of log, {row['n']} points"
            table.add_row(name.replace("_", " "), _digits(row["rmse_log"]), "", relative, label)
    if result["predictions"]:
        table.add_section()
    for row in result["predictions"]:
        inputs = ", ".join(f"{name} {v if isinstance(v, str) else f'{v:g}'}" for name, v in row["inputs"].items())
        table.add_row(y, _digits(row["value"]), "", _interval(row), f"at {inputs}")
    return table


def groups_table(results: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Return the table of one law for each group."""
    table = Table(title=title)
    names = list(dict.fromkeys(name for result in results.values() for name in result["parameters"]))
    held = any(result["holdout"] for result in results.values())
    for name in ("group", "n", *names, "rms of log", *["held out"] * held, "identifiability"):
        table.add_column(name, justify="left" if name in ("group", "identifiability") else "right")
    for key, result in results.items():
        cells = [_digits(result["parameters"][name]["value"]) for name in names]
        out = [_digits((result["holdout"] or {}).get("rmse_log", np.nan))] if held else []
        verdict = result["diagnostics"]["identifiability"]["verdict"]
        table.add_row(
            str(key), str(result["n_points"]), *cells, _digits(result["in_sample"]["rmse_log"]), *out, verdict
        )
    return table


def quotation(result: Mapping[str, Any], fitted: Fit, level: float) -> str:
    """Return one sentence with what a paper has to say of a fit."""
    limits, closing = (_interval, f", with {level:.0%} intervals") if fitted.minimum else (None, "")
    values = [
        f"{name} = {_digits(row['value'])}{f' ({limits(row)})' if limits else ''}"
        for name, row in result["parameters"].items()
    ]
    said = (
        f"{fitted.form.equation} ({fitted.form.source}), fitted to {result['n_points']} points by "
        f"{_fitted_how(fitted)}: {', '.join(values)}{closing}"
    )
    if (row := result["holdout"]) is not None:
        said += f"; mean relative error {row['mean_relative_error']:.2%} on {row['n']} points held out"
    return f"{said}."


def _identifiability(fitted: Fit) -> dict[str, Any]:
    if not fitted.minimum:
        return {"verdict": None, "condition": math.nan, "on_bounds": (), "sentences": ()}
    found = diagnose(fitted)
    return {name: getattr(found, name) for name in ("verdict", "condition", "on_bounds", "sentences")}


def _predictions(
    fitted: Fit,
    at: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, np.ndarray] | None,
    draws: Bootstrap | None,
    level: float,
) -> list[dict[str, Any]]:
    """New measurements; where points have a noise of their own, one of median noise."""
    assert inputs is not None
    if not fitted.minimum:
        values = predict(fitted, inputs)
        none = {"low": math.nan, "high": math.nan}
        return [{"inputs": dict(where), "value": float(v), **none} for where, v in zip(at, values, strict=True)]
    sigma = None if fitted.points.sigma is None else np.full(len(at), np.median(fitted.points.sigma))
    found = prediction_intervals(fitted, inputs, level=level, draws=draws, sigma=sigma)
    limits = zip(found.value, found.low, found.high, strict=True)
    rows = (dict(zip(("value", "low", "high"), map(float, one), strict=True)) for one in limits)
    return [{"inputs": dict(where), **row} for where, row in zip(at, rows, strict=True)]


def _fitted_how(fitted: Fit) -> str:
    name = fitted.loss.name.replace("_", " ")
    width = f" loss (delta = {fitted.loss.width:g})" if np.isfinite(fitted.loss.width) else " loss"
    stopped = "" if fitted.minimum else ", its descent stopped early"
    return f"{name}{width} in {fitted.space} space{stopped}"


def _digits(value: float | None, digits: int = 4) -> str:
    if value is None or np.isnan(value):
        return "-"
    return "0" if abs(value) < 1e-99 else f"{value:.{digits}g}"  # a parameter on its bound


def _interval(row: Mapping[str, Any]) -> str:
    ends = _digits(row["low"]), _digits(row["high"])
    return "-" if ends == ("-", "-") else " to ".join(ends)
