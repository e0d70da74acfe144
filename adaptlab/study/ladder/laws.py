"""Laws of a ladder: which rows a law explains, its fit with intervals, and what it says where nothing was run."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaptlab import scaling
from adaptlab.scaling.bootstrap import bootstrap, bootstrap_intervals
from adaptlab.scaling.diagnosis import diagnose
from adaptlab.scaling.prediction import prediction_intervals
from adaptlab.scaling.selection import errors

__all__ = ["Fitted", "Law", "fit_law", "fit_laws", "law", "predicted", "rows_of"]

log = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]


class Law(NamedTuple):
    """A law and the rows it explains; made by `law`, which has the attributes."""

    form: scaling.Form
    where: Mapping[str, Any]
    x: Mapping[str, str]
    y: str
    by_step: bool
    predicts: bool
    says: str


class Fitted(NamedTuple):
    """A law fitted to its rows.

    Attributes:
      law: the law.
      fit: its fit; None if the rows cannot determine it.
      rows: those it was fitted to.
      table: for JSON and tables: form, equation, parameters with intervals, errors, and what is to be said of it.
    """

    law: Law
    fit: scaling.Fit | None
    rows: Rows
    table: dict[str, Any]


def law(
    form: scaling.Form,
    where: Mapping[str, Any],
    x: Mapping[str, str],
    y: str,
    *,
    bounds: Mapping[str, Any] | None = None,
    by_step: bool = False,
    predicts: bool = False,
    says: str = "",
) -> Law:
    """State which law is fitted to what.

    Args:
      form: see `adaptlab.scaling.forms`.
      where: `{column: value, or values}` of the rows it explains; see `adaptlab.study.ladder.points.COLUMNS`.
      x: `{input of the form: column}`.
      y: the column that is explained.
      bounds: `{parameter: [low, high]}` in place of the form's own: an exponent of ten is no law, but fits few points.
      by_step: whether it explains every measurement of a run (`forgetting.csv`) or each run once (`points.csv`).
      predicts: whether it predicts the largest rung from the others.
      says: what it is a law of, in a few words.

    Raises:
      ValueError: inputs that are not the form's; or a law by step that shall predict a rung.
    """
    if set(x) != set(form.inputs):
        raise ValueError(f"x={dict(x)}: {form.name} has the inputs {list(form.inputs)}; give a column for each.")
    if by_step and predicts:
        raise ValueError("predicts=true needs a law of whole runs: by_step=false.")
    narrowed = scaling.bounded(form, **{name: (low, high) for name, (low, high) in (bounds or {}).items()})
    return Law(narrowed, where, x, y, by_step, predicts, says)


def rows_of(one: Law, rows: Rows) -> list[Mapping[str, Any]]:
    """Return the rows that a law explains: those it names, that have all its columns as positive numbers."""

    def measured(row: Mapping[str, Any]) -> bool:
        values = [row.get(column) for column in (*one.x.values(), one.y)]
        exact = one.y != "data_transferred" or not row.get("effective_data_bound")
        return exact and all(value is not None and np.isfinite(value) and value > 0 for value in values)

    return [row for row in _named(one, rows) if measured(row)]


def fit_law(one: Law, rows: Rows, *, level: float = 0.95, draws: int = 200, seed: int = 0) -> Fitted:
    """Fit a law to its rows; where they cannot determine it the table says why.

    Runs are independent; measurements of one run (`by_step`) are resampled together.

    Args:
      one: the law.
      rows: all rows; it takes its own.
      level: of the intervals.
      draws: bootstrap refits.
      seed: of starts and draws.
    """
    mine = rows_of(one, rows)
    table: dict[str, Any] = {
        "form": one.form.name,
        "equation": one.form.equation,
        "source": one.form.source,
        "says": one.says,
        "x": dict(one.x),
        "y": one.y,
        "where": dict(one.where),
        "n_points": len(mine),
        "left_out": _left_out(one, rows),
    }
    try:
        points = scaling.as_points(
            {name: [row[column] for row in mine] for name, column in one.x.items()},
            [row[one.y] for row in mine],
            runs=[row["run"] for row in mine] if one.by_step else None,
        )
        fitted = scaling.fit(one.form, points, seed=seed)
    except ValueError as error:
        log.warning("%s is not fitted: %s", one.says or one.form.name, error)
        return Fitted(one, None, mine, table | {"parameters": {}, "problem": str(error)})
    said, (intervals, missing) = diagnose(fitted), _intervals(fitted, level, draws, seed)
    parameters = {
        name: {"value": value, "low": intervals[name][0], "high": intervals[name][1]}
        for name, value in fitted.values.items()
    }
    found = {
        "parameters": parameters,
        "errors": errors(fitted, points)._asdict(),
        "identifiability": said.verdict,
        "notes": [*missing, *said.sentences, *fitted.warnings],
        "starts_agree": fitted.starts_agree,
        "level": level,
        "problem": None,
    }
    return Fitted(one, fitted, mine, table | found)


def _intervals(
    fitted: scaling.Fit, level: float, draws: int, seed: int
) -> tuple[Mapping[str, tuple[float, float]], list[str]]:
    """The parameters' bootstrap intervals; where there are none, infinite ones and the reason."""
    try:
        return bootstrap_intervals(bootstrap(fitted, draws, seed=seed), level), []
    except ValueError as error:
        return dict.fromkeys(fitted.values, (-np.inf, np.inf)), [f"There are no intervals: {error}."]


def fit_laws(laws: Mapping[str, Law], rows: Rows, by_step: Rows, **options: Any) -> dict[str, Fitted]:
    """Fit every law to its rows; `options` are those of `fit_law`."""
    return {name: fit_law(one, by_step if one.by_step else rows, **options) for name, one in laws.items()}


def predicted(fitted: Fitted, x: Mapping[str, float], level: float = 0.95) -> dict[str, float]:
    """Return `{"value", "low", "high"}` of a new run at inputs, with the noise of a run in its interval.

    Args:
      fitted: a law with a fit.
      x: `{input: value}`.
      level: the probability that a run lies within.
    """
    assert fitted.fit is not None
    found = prediction_intervals(fitted.fit, {name: [value] for name, value in x.items()}, level=level)
    return {"value": float(found.value[0]), "low": float(found.low[0]), "high": float(found.high[0])}


def _left_out(one: Law, rows: Rows) -> int:
    """How many rows a law names, but cannot take: diverged, or only a bound."""
    return len(_named(one, rows)) - len(rows_of(one, rows))


def _named(one: Law, rows: Rows) -> list[Mapping[str, Any]]:
    def holds(value: Any, wanted: Any) -> bool:
        return value in wanted if isinstance(wanted, list | tuple) else value == wanted

    return [row for row in rows if all(holds(row.get(column), wanted) for column, wanted in one.where.items())]
