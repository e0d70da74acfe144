"""Figures of a fitted scaling law: the law with its band, its residuals, its profiles, and its optima by compute."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaptlab.report.figures import Axes, Figure, Look, grid, legend, looks, name_axes, styled

__all__ = ["Band", "Law", "draw_scaling"]

_LEVELS = (0.1, 0.5, 0.9)  # quantiles of the other inputs at which a law of several is drawn
_PER_COMPUTE = 6  # FLOPs for each parameter and token of training


class Band(NamedTuple):
    """Predictions with their intervals, each `(m,)`."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Law(NamedTuple):
    """What is drawn.

    Attributes:
      name: of the form.
      y: what is explained, for the axis.
      x: `{input: (n,)}`, of all points.
      values: `(n,)`, the outcomes.
      held_out: `(n,)`, which points were not fitted.
      band: `{input: (m,)} -> Band`.
      names: `{input: label}` for axes.
      profiles: `{parameter: (values, statistics)}`: how much worse the fit is with a parameter held at a value and the
        others fitted, see `adaptlab.scaling.profile`; may be empty.
      estimates: `{parameter: value}`.
      limit: the statistic at the ends of an interval.
      log: whether the space of the fit is the logarithm.
    """

    name: str
    y: str
    x: Mapping[str, np.ndarray]
    values: np.ndarray
    held_out: np.ndarray
    band: Callable[[Mapping[str, np.ndarray]], Band]
    names: Mapping[str, str]
    profiles: Mapping[str, tuple[np.ndarray, np.ndarray]]
    estimates: Mapping[str, float]
    limit: float
    log: bool


def draw_scaling(law: Law) -> dict[str, Figure]:
    """Return the figures of a law by name.

    They are the law and its residuals, profiles if there are any, and of a law of N and D the lines of equal compute.
    """
    figures = {"law": _law(law), "residuals": _residuals(law)}
    if law.profiles:
        figures["profiles"] = _profiles(law)
    if set(law.x) == {"N", "D"} and all((values > 0).all() for values in law.x.values()):
        figures["isoflop"] = _isoflop(law)
    return figures


@styled
def _law(law: Law) -> Figure:
    """A panel for each input; of a law of several, at three levels of the others."""
    figure, panels = grid([*law.names.values()], 2.9 if len(law.x) == 1 else 2.5)
    for axes, name in zip(panels, law.x, strict=True):
        others = [other for other in law.x if other != name]
        levels = _LEVELS if others else (0.5,)
        line = _along(law.x[name], bool(law.held_out.any()))
        for look, level in zip(looks([f"{level:.0%}" for level in levels]), levels, strict=True):
            at = {other: np.full_like(line, np.quantile(law.x[other], level)) for other in others}
            band = law.band({key: line if key == name else at[key] for key in law.x})
            axes.plot(line, band.value, color=look.colour, linewidth=1.2)
            axes.fill_between(line, band.low, band.high, color=look.colour, alpha=0.15, linewidth=0)
        _points(axes, law, law.x[name], law.values)
        _scale(axes, law.x[name], law.log)
        axes.set_xlabel(law.names[name])
    if len(law.x) > 1:
        named = [look._replace(label=f"others at their {look.label} quantile") for look in looks(["10%", "50%", "90%"])]
        _lines(figure, panels[0], named)
    name_axes(figure, "", law.y)
    return figure


@styled
def _residuals(law: Law) -> Figure:
    """Measured over predicted against each input and against the prediction, in per cent."""
    predicted = law.band(law.x).value
    residual = 100 * (law.values / predicted - 1) if law.log else law.values - predicted
    against = {name: law.x[name] for name in law.x} | {f"Predicted {law.y}": predicted}
    figure, panels = grid([law.names.get(name, name) for name in against], 2.2, sharey=True)
    for axes, values in zip(panels, against.values(), strict=True):
        axes.axhline(0, color="#444444", linewidth=0.8)
        _points(axes, law, values, residual)
        if values.min() > 0 and values.max() > 10 * values.min():
            axes.set_xscale("log")
    if law.held_out.any():
        legend(figure, panels[0], [Look("fitted", "#000000", "o"), Look("held out", "#D55E00", "s")])
    name_axes(figure, "", "Measured over predicted - 1 (%)" if law.log else "Measured - predicted")
    return figure


@styled
def _profiles(law: Law) -> Figure:
    """A panel for each parameter: an interval is where the profile is under the line."""
    figure, panels = grid([*law.profiles], 1.8, sharey=True)
    for axes, (name, (values, statistics)) in zip(panels, law.profiles.items(), strict=True):
        order = np.argsort(values)
        axes.plot(np.asarray(values)[order], np.asarray(statistics)[order], color="#0072B2")
        axes.axhline(law.limit, color="#444444", linestyle="--", linewidth=0.8)
        axes.axvline(law.estimates[name], color="#D55E00", linewidth=0.8)
    panels[0].set_ylim(-0.05 * law.limit, 3 * law.limit)
    name_axes(figure, "Value of the parameter", "F statistic of the fit")
    return figure


@styled
def _isoflop(law: Law) -> Figure:
    """The loss along lines of constant compute C = 6 N D, with the optimum of each."""
    size, compute = np.asarray(law.x["N"]), _PER_COMPUTE * np.asarray(law.x["N"]) * np.asarray(law.x["D"])
    budgets = np.geomspace(np.quantile(compute, 0.05), np.quantile(compute, 0.95), 5)
    figure = Figure(figsize=(6.6, 3.4), layout="constrained")
    axes = figure.subplots()
    line = _along(size, False)
    shown = looks([f"C = {budget:.1e}" for budget in budgets])
    nearest = np.abs(np.log(compute[:, None] / budgets)).argmin(axis=1)
    for i, (look, budget) in enumerate(zip(shown, budgets, strict=True)):
        band = law.band({"N": line, "D": budget / _PER_COMPUTE / line})
        best = int(np.argmin(band.value))
        axes.plot(line, band.value, color=look.colour, linewidth=1.2)
        axes.fill_between(line, band.low, band.high, color=look.colour, alpha=0.12, linewidth=0)
        axes.plot(line[best], band.value[best], look.marker, color=look.colour, markersize=7)
        mine = nearest == i
        axes.plot(size[mine], law.values[mine], ".", color=look.colour, markersize=3, alpha=0.5)
    low, high = law.values.min(), law.values.max()
    axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axes.set(xscale="log", xlabel=f"{law.names['N']} at constant C = 6 N D", ylabel=law.y)
    if law.log:
        _log_y(axes)
    legend(figure, axes, shown)
    return figure


def _along(values: np.ndarray, further: bool) -> np.ndarray:
    """100 values over the range of a positive input on a log scale, of another on a linear one."""
    low, high = float(values.min()), float(values.max())
    if low > 0:
        return np.geomspace(low, high * (2.0 if further else 1.0), 100)
    return np.linspace(low, high, 100)


def _points(axes: Axes, law: Law, x: np.ndarray, y: np.ndarray) -> None:
    fitted = ~law.held_out
    axes.plot(x[fitted], y[fitted], "o", color="#000000", markersize=3, alpha=0.6)
    axes.plot(x[law.held_out], y[law.held_out], "s", color="#D55E00", markersize=3.5, markerfacecolor="white")


def _scale(axes: Axes, x: np.ndarray, log: bool) -> None:
    if (x > 0).all():
        axes.set_xscale("log")
    if log:
        _log_y(axes)


def _log_y(axes: Axes) -> None:
    """A logarithmic axis with plain numbers: losses seldom span a decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")


def _lines(figure: Figure, axes: Axes, shown: Sequence[Look]) -> None:
    handles: list[Any] = [axes.plot([], [], color=one.colour, label=one.label)[0] for one in shown]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(shown))
