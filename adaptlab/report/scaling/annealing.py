"""From a table of loss curves to a law of annealing: its fit to some schedules, and its predictions of others."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from rich.table import Table as Grid

from adaptlab.config import nearest
from adaptlab.report.figures import Figure, Look, grid, legend, name_axes, styled
from adaptlab.report.scaling.results import fit_result
from adaptlab.scaling.annealing import Curve, Exposure, annealing_points, exposure_of, make_curve
from adaptlab.scaling.columns import evaluate, mask
from adaptlab.scaling.early_stopping import fit_early_stopped, refit_early_stopped
from adaptlab.scaling.fit import Fit, fit, predict, refit
from adaptlab.scaling.form import Form
from adaptlab.scaling.left_out import leave_schedules_out
from adaptlab.scaling.points import Points, subset
from adaptlab.scaling.selection import errors
from adaptlab.scaling.table import Table, column, take

__all__ = [
    "Annealing",
    "Estimate",
    "curves_csv",
    "draw_annealing",
    "fit_annealing",
    "read_curves",
    "schedules_table",
    "split_schedules",
]

_ROWS, _DROPS = 100, 32  # of each curve, in the fit: a smooth curve has no more to say, and whole ones take minutes

Law = Callable[[Exposure], Form]
Estimate = Literal["minimise", "early_stopping"]


class Annealing(NamedTuple):
    """A law fitted to the curves of some schedules.

    Attributes:
      fitted: the fit.
      curves: all of them, those fitted first.
      predicted: `{schedule: (T,)}`, at the curve's steps.
      test: the names of those that were only predicted.
      result: what `fit.json` holds.
    """

    fitted: Fit
    curves: list[Curve]
    predicted: dict[str, np.ndarray]
    test: list[str]
    result: dict[str, Any]


def read_curves(
    table: Table, *, schedule: str, step: str, lr: str, y: str, where: str | None = None, warmup: float | None = None
) -> dict[str, Curve]:
    """Return the curve of each schedule in a table with a row for each step.

    Raises:
      ValueError: an unknown column, a value that is missing or of the wrong sign, a step that stands twice.
    """
    if where is not None:
        table = take(table, mask(where, table))
    if not table.n:
        raise ValueError(f"{table.source}: no rows{'' if where is None else f' in which {where!r} holds'}.")
    names, values = column(table, schedule), {name: evaluate(name, table) for name in (step, lr, y)}
    for name, one in values.items():
        wrong = ~np.isfinite(one) | (one <= 0 if name == y else one < 0)
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            least = "positive" if name == y else "0 or more"
            raise ValueError(
                f"{table.at(i)}: {name} is {one[i]:g}; it must be a number, {least}. where= leaves rows out."
            )
    named = np.array([f"{name:g}" if isinstance(name, float) else name for name in names.tolist()], object)
    curves = {}
    for name in dict.fromkeys(named):
        rows = named == name
        curves[name] = make_curve(name, *(values[one][rows] for one in (step, lr, y)), warmup=warmup)
    return curves


def split_schedules(
    names: Sequence[str], train: Sequence[str] | None, test: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Return the schedules to fit to and those to predict; what is not said is the rest.

    Raises:
      ValueError: there is no such schedule, one is on both sides, or none to fit to.
    """
    for key, some in (("train", train), ("test", test)):
        for name in some or ():
            if name not in names:
                raise ValueError(
                    f"{key}: there is no schedule {name!r}.{nearest(name, names)} There are: {list(names)}."
                )
    if both := sorted(set(train or ()) & set(test or ())):
        raise ValueError(f"{both} are in train and in test.")
    fitted = list(train) if train is not None else [name for name in names if name not in (test or ())]
    predicted = list(test) if test is not None else [name for name in names if train is not None and name not in train]
    if not fitted:
        raise ValueError("train: no schedule is left to fit to.")
    return fitted, predicted


def fit_annealing(
    law: Law,
    curves: Mapping[str, Curve],
    train: Sequence[str],
    test: Sequence[str],
    *,
    estimate: Estimate = "minimise",
    level: float = 0.95,
    **how: Any,
) -> Annealing:
    """Fit a law to some curves and predict others, and each of the fitted from the rest.

    Args:
      law: `exposure -> Form`, see `adaptlab.scaling.annealing_laws`.
      curves: all curves by schedule.
      train, test: names.
      estimate: "minimise" is `adaptlab.scaling.fit`; "early_stopping" is
        `adaptlab.scaling.early_stopping.fit_early_stopped`, of the multi-power law only.
      level: of intervals.
      **how: the options of either.

    Raises:
      ValueError: an estimate that there is not, or not of this law.
    """
    fitting = exposure_of([curves[name] for name in train], most_drops=_DROPS, most_rows=_ROWS)
    lasts = [_last(curves[name]) for name in test]
    every = _joined([fitting, *(exposure_of([curve], most_drops=_DROPS) for curve in lasts)])
    points, count = annealing_points(every), len(fitting.area)
    form = law(every)
    runs = points.runs if len(train) > len(form.parameters) else None
    fitted, again = _estimated(estimate, form, every, subset(points._replace(runs=runs), np.arange(count)), how)
    predicted = {name: _predicted(law, fitted, curves[name]) for name in (*train, *test)}
    x = {name: values[count:] for name, values in points.x.items()}  # the last row of each schedule to predict
    at = [{"schedule": name, "step": float(curves[name].step_T[-1])} for name in test]
    result = fit_result(fitted, at=at, inputs=x, level=level, profiled=False)
    judged = {name: _judged(law, fitted, curves[name])._asdict() for name in (*train, *test)}
    result["in_sample"] = _pooled([judged[name] for name in train])
    result["holdout"] = _pooled([judged[name] for name in test]) if test else None
    result["diagnostics"]["warnings"] += _remarks(fitted, result, len(train))
    result["schedules"] = {name: {"split": "test" if name in test else "train", **row} for name, row in judged.items()}
    result["estimate"], result["left_out"] = estimate, leave_schedules_out(fitted, every, again)
    return Annealing(fitted, [curves[name] for name in (*train, *test)], predicted, list(test), result)


def curves_csv(found: Annealing) -> str:
    """Return the measured and predicted curves as CSV: schedule, split, step, lr, loss, predicted."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("schedule", "split", "step", "lr", "loss", "predicted"))
    for curve in found.curves:
        split = "test" if curve.name in found.test else "train"
        for row in zip(curve.step_T, curve.lr_T, curve.loss_T, found.predicted[curve.name], strict=True):
            writer.writerow((curve.name, split, *(f"{value:.10g}" for value in row)))
    return text.getvalue()


def schedules_table(found: Annealing) -> Grid:
    """Return the table of how well each schedule is described."""
    table = Grid(title="Error of the law by schedule")
    table.add_column("schedule", overflow="fold")  # names whole, also on a narrow screen
    table.add_column("")
    for name in ("rows", "mean relative error", "largest", "rms of log", "mean when left out"):
        table.add_column(name, justify="right")
    out = found.result["left_out"]
    for name, row in found.result["schedules"].items():
        numbers = (f"{row['mean_relative_error']:.3%}", f"{row['max_relative_error']:.3%}", f"{row['rmse_log']:.5f}")
        without = f"{out[name]:.3%}" if np.isfinite(out.get(name, np.nan)) else "-"
        table.add_row(name, row["split"], str(row["n"]), *numbers, without)
    return table


@styled
def draw_annealing(found: Annealing) -> Figure:
    """A panel for each schedule: the measured curve and the law's."""
    titles = []
    for curve in found.curves:
        row = found.result["schedules"][curve.name]
        titles.append(f"{curve.name} ({row['split']}): {row['mean_relative_error']:.2%}")
    figure, panels = grid(titles, 1.8)
    for axes, curve in zip(panels, found.curves, strict=True):
        colour = "#D55E00" if curve.name in found.test else "#0072B2"
        axes.plot(curve.step_T, curve.loss_T, color="#000000", linewidth=0.8)
        axes.plot(curve.step_T, found.predicted[curve.name], color=colour, linewidth=1.2)
    handles = [Look("measured", "#000000", ""), Look("fitted", "#0072B2", ""), Look("predicted", "#D55E00", "")]
    legend(figure, panels[0], handles)
    name_axes(figure, "Step", "Loss; in titles, mean relative error")
    return figure


def _estimated(
    estimate: Estimate, form: Form, exposure: Exposure, points: Points, how: dict[str, Any]
) -> tuple[Fit, Callable[..., Any]]:
    """The fit, and the same under other weights, see `leave_schedules_out`."""
    if estimate not in get_args(Estimate):
        choices = list(get_args(Estimate))
        raise ValueError(f"estimate must be one of {choices}; got {estimate!r}.{nearest(estimate, choices)}")
    if estimate == "minimise":
        fitted = fit(form, points, **how)
        return fitted, partial(refit, fitted)
    if form.name != "multi_power":
        raise ValueError(
            f"estimate='early_stopping' is published for law=multi_power only, and the law is {form.name}. Take "
            "estimate=minimise, or law=multi_power."
        )
    return fit_early_stopped(exposure, points, **how), partial(refit_early_stopped, exposure, points, **how)


def _remarks(fitted: Fit, result: Mapping[str, Any], schedules: int) -> list[str]:
    """What few schedules mean for a minimum."""
    if not fitted.minimum or fitted.points.runs is not None:
        return []
    said = [
        f"The rows of a curve share their noise, but {schedules} schedules are too few to estimate that for "
        f"{len(fitted.form.parameters)} parameters: standard errors take rows as independent, and are too small."
    ]
    if fitted.form.name == "multi_power" and result["diagnostics"]["identifiability"]["verdict"] != "identified":
        said.append(
            "estimate=early_stopping keeps what these schedules leave free near a simpler law; compare the errors of "
            "schedules left out under both."
        )
    return said


def _last(curve: Curve) -> Curve:
    """The curve with its last row only, over the whole schedule."""
    ends = {name: getattr(curve, name)[-1:] for name in ("step_T", "lr_T", "loss_T", "area_T")}
    return curve._replace(**ends)


def _joined(parts: Sequence[Exposure]) -> Exposure:
    first = np.cumsum([0, *(len(part.area) for part in parts)])
    moved = [part._replace(row_P=part.row_P + shift) for part, shift in zip(parts, first, strict=False)]
    return Exposure(*(np.concatenate(arrays) for arrays in zip(*moved, strict=True)))


def _of(law: Law, fitted: Fit, curve: Curve) -> tuple[Fit, Any]:
    exposure = exposure_of([curve])
    return fitted._replace(form=law(exposure)), annealing_points(exposure)


def _predicted(law: Law, fitted: Fit, curve: Curve) -> np.ndarray:
    there, points = _of(law, fitted, curve)
    return predict(there, points.x)


def _judged(law: Law, fitted: Fit, curve: Curve) -> Any:
    return errors(*_of(law, fitted, curve))


def _pooled(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Errors over the rows of several curves."""
    n = np.array([row["n"] for row in rows])
    mean, square = (np.array([row[name] for row in rows]) for name in ("mean_relative_error", "rmse_log"))
    largest = max(row["max_relative_error"] for row in rows)
    root = float(np.sqrt(np.average(square**2, weights=n)))
    relative = float(np.average(mean, weights=n))
    return {"n": int(n.sum()), "rmse_log": root, "mean_relative_error": relative, "max_relative_error": largest}
