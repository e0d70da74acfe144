"""From a table to fitted laws: rows to points, points to fits, fits to results, figures and what is printed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from scipy.special import stdtrit

from adaptlab.report.scaling.results import fit_result, groups_table, law_table, quotation
from adaptlab.scaling.bootstrap import Bootstrap, bootstrap
from adaptlab.scaling.columns import evaluate
from adaptlab.scaling.fit import Fit, fit_groups
from adaptlab.scaling.form import Form
from adaptlab.scaling.inputs import Given, assign, given_points, held_out, kept_rows
from adaptlab.scaling.points import subset
from adaptlab.scaling.prediction import prediction_intervals
from adaptlab.scaling.profile import profile
from adaptlab.scaling.sandwich import covariance
from adaptlab.scaling.table import Table, column, make_table, take

__all__ = ["FittedLaw", "Prepared", "draw_laws", "fit_laws", "prepare", "print_laws"]

_PROFILED = 17  # values of a parameter in the figure of its profile


class Prepared(NamedTuple):
    """The points of one law.

    Attributes:
      given: all of them, and the columns they are from.
      held: which are held out, `(n,)`.
      at: where to predict, as the user says it.
      inputs: the same as the law's inputs, `{input: (m,)}`.
    """

    given: Given
    held: np.ndarray
    at: list[dict[str, float]]
    inputs: dict[str, np.ndarray]


class FittedLaw(NamedTuple):
    """A law fitted to the points of a table or of one group.

    Attributes:
      prepared: its points.
      fitted: the fit.
      draws: its bootstrap, or None.
      result: what `fit.json` holds.
      level: of its intervals.
    """

    prepared: Prepared
    fitted: Fit
    draws: Bootstrap | None
    result: dict[str, Any]
    level: float


def prepare(
    table: Table,
    form: Form,
    *,
    x: str | Sequence[str] | Mapping[str, str] | None,
    y: str,
    where: str | None = None,
    drop_highest: int = 0,
    group: str | None = None,
    holdout: str | None = None,
    at: Sequence[Mapping[str, float]] = (),
    space: str = "log",
    **options: Any,
) -> dict[str, Prepared]:
    """Return the points of each group of rows, `{"": …}` if there are no groups.

    Args:
      table: the rows.
      form: the law.
      x, y: the columns, see `adaptlab.scaling.inputs.assign`.
      where, drop_highest: which rows, see `kept_rows`; the highest of each group are dropped.
      group: a column.
      holdout: see `held_out`.
      at: where to predict.
      space: of the fit.
      **options: of `given_points`.

    Raises:
      ValueError: see `adaptlab.scaling.inputs`; and fewer points than the law needs.
    """
    chosen = assign(form.inputs, list(form.inputs) if x is None else x, form.name)
    rows = kept_rows(table, y, where)
    prepared = {}
    for key, part in _groups(rows, group).items():
        named = part._replace(source=f"{part.source} ({group} {key})") if group else part
        given = given_points(kept_rows(named, y, None, drop_highest), chosen, y, space=space, **options)
        held = held_out(given, holdout)
        _enough(given, form, int((~held).sum()), bool(held.any()))
        prepared[key] = Prepared(given, held, [dict(one) for one in at], _inputs(at, chosen))
    return prepared


def fit_laws(
    form: Form, prepared: Mapping[str, Prepared], *, bootstrap: int = 0, level: float = 0.95, seed: int = 0, **how: Any
) -> dict[str, FittedLaw]:
    """Fit the law to each group in one program.

    Args:
      form: the law.
      prepared: from `prepare`.
      bootstrap: how many refits; 0 for none.
      level: of intervals.
      seed: of starts and of the bootstrap.
      **how: `loss`, `delta`, `space` and `starts` of `adaptlab.scaling.fit`.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}; 0.95 is usual.")
    if bootstrap < 0 or bootstrap == 1:
        raise ValueError(f"bootstrap={bootstrap} must be 0 (none) or at least 2; 1000 is usual.")
    points = {key: subset(one.given.points, ~one.held) for key, one in prepared.items()}
    laws = {}
    for key, fitted in fit_groups(form, points, seed=seed, **how).items():
        one = prepared[key]
        draws = _bootstrap(fitted, bootstrap, seed)
        held = subset(one.given.points, one.held) if one.held.any() else None
        result = fit_result(fitted, held=held, draws=draws, at=one.at, inputs=one.inputs, level=level)
        laws[key] = FittedLaw(one, fitted, draws, result, level)
    return laws


def draw_laws(laws: Mapping[str, FittedLaw], path: Path) -> list[Path]:
    """Draw the figures of a law beside its result, and return their paths; of groups, the figures of each."""
    from adaptlab.report.figures import save_figure
    from adaptlab.report.scaling.figures import draw_scaling

    drawn = []
    for key, law in laws.items():
        stem = f"{path.stem}_{_file_name(key)}" if key else path.stem
        for name, figure in draw_scaling(_drawn(law)).items():
            save_figure(path.with_name(f"{stem}_{name}"), figure)
            drawn.append(path.with_name(f"{stem}_{name}.png"))
    return drawn


def print_laws(laws: Mapping[str, FittedLaw], console: Console, group: str | None, level: float) -> None:
    """Print what was fitted, a sentence to quote for each law, and warnings."""
    first = next(iter(laws.values()))
    form, given = first.fitted.form, first.prepared.given
    read = ", ".join(f"{name} = {text}" for name, text in given.x.items())
    console.print(f"{given.y} as a law of {read}", highlight=False, markup=False)
    if group is None:
        console.print(law_table(first.result, first.fitted, level, given.y))
    else:
        results = {key: law.result for key, law in laws.items()}
        console.print(groups_table(results, f"{form.name} by {group}: {form.equation}"))
    for key, law in laws.items():
        prefix = f"{group} {key}: " if group else ""
        text = prefix + quotation(law.result, law.fitted, level)
        console.print(text, highlight=False, markup=False, soft_wrap=True)
        said = law.result["diagnostics"]
        for warning in (*said["identifiability"]["sentences"], *said["warnings"]):
            console.print(f"Warning: {prefix}{warning}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def _groups(table: Table, group: str | None) -> dict[str, Table]:
    if group is None:
        return {"": table}
    values = column(table, group)
    names = [f"{value:g}" if values.dtype == np.float64 else str(value) for value in values]
    return {name: take(table, np.array([one == name for one in names])) for name in dict.fromkeys(names)}


def _enough(given: Given, form: Form, count: int, some_held: bool) -> None:
    least = len(form.parameters) + 1
    if count < least:
        fitted = f"{count} of {given.points.n} points are left to fit" if some_held else f"there are {count} points"
        raise ValueError(
            f"{given.table.source}: {fitted}, and {form.name} has {len(form.parameters)} parameters "
            f"({', '.join(form.names)}): it needs at least {least}. Add points, hold out fewer, or choose a form with "
            f"fewer parameters, such as form=power form.offset=false with 2."
        )


def _inputs(at: Sequence[Mapping[str, float]], chosen: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The law's inputs at the places to predict, which name inputs, or columns that the inputs' expressions read."""
    found: dict[str, list[float]] = {name: [] for name in chosen}
    for number, one in enumerate(at):
        table = make_table(f"at[{number}]", {key: [float(value)] for key, value in one.items()})
        defined: dict[str, np.ndarray] = {}
        for name, text in chosen.items():
            try:
                defined[name] = column(table, name)
            except ValueError:
                try:
                    defined[name] = evaluate(text, table, defined)
                except ValueError as error:
                    raise ValueError(f"at[{number}]={dict(one)} must give {list(chosen)}: {error}") from error
            if not np.isfinite(defined[name][0]) or defined[name][0] < 0:
                raise ValueError(f"at[{number}]: {name} is {defined[name][0]:g}; inputs are finite and 0 or more.")
            found[name].append(float(defined[name][0]))
    return {name: np.array(values) for name, values in found.items()}


def _bootstrap(fitted: Fit, count: int, seed: int) -> Bootstrap | None:
    return bootstrap(fitted, count, seed=seed) if count else None


def _drawn(law: FittedLaw) -> Any:
    from adaptlab.report.scaling.figures import Band, Law

    fitted, given = law.fitted, law.prepared.given
    spread = None if fitted.points.sigma is None else float(np.median(fitted.points.sigma))

    def band(x: Mapping[str, np.ndarray]) -> Band:
        m = len(next(iter(x.values())))
        sigma = None if spread is None else np.full(m, spread)
        found = prediction_intervals(fitted, x, level=law.level, sigma=sigma)
        return Band(found.value, found.low, found.high)

    names = {name: text if text == name else f"{name} = {text}" for name, text in given.x.items()}
    return Law(
        name=fitted.form.name,
        y=given.y,
        x=given.points.x,
        values=given.points.y,
        held_out=law.prepared.held,
        band=band,
        names=names,
        profiles=_profiles(law),
        estimates=fitted.values,
        limit=float(stdtrit(covariance(fitted).dof, (1 + law.level) / 2)) ** 2,
        log=fitted.space == "log",
    )


def _profiles(law: FittedLaw) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The profile of each parameter whose interval is known, over twice that interval."""
    found = {}
    for p in law.fitted.form.parameters:
        row = law.result["parameters"][p.name]
        low, high, value = row["low"], row["high"], row["value"]
        if not (np.isfinite([low, high]).all() and low < value < high):
            continue
        if p.log and low > 0:
            grid = value * np.geomspace((low / value) ** 1.5, (high / value) ** 1.5, _PROFILED)
        else:
            grid = value + np.linspace(1.5 * (low - value), 1.5 * (high - value), _PROFILED)
        grid = grid[(grid > p.low) & (grid < p.high)]
        found[p.name] = (grid, profile(law.fitted, p.name, grid).statistic)
    return found


def _file_name(key: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "-." else "_" for sign in key)
