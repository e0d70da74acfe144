"""Figures of a forgetting study: matplotlib's only door.

Every figure uses matplotlib's objects and no global state, one colour *and* one marker for each method (so
that grey prints can be read), and is the same file bit by bit for the same numbers.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptlab import stats
from adaptlab.report import files
from adaptlab.report.trajectory import MEAN, Trajectory, crossing, trajectory

__all__ = ["draw", "render", "save_figure"]

# Okabe and Ito (2008), distinguishable under the common colour blindnesses; without yellow, which is too
# light for lines on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.hashsalt": "adaptlab",
    "svg.fonttype": "path",
}


class _Method(NamedTuple):
    """What is drawn for one method at its representative learning rate."""

    label: str
    colour: str
    marker: str
    level: float  # of its intervals
    paths: list[Trajectory]  # one for each seed


def draw(curves: pa.Table, summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Return a study's figures by name: the forgetting and gain curves, the trade-off and, if several were
    tried, the learning rates. `captions.captions` has the words for each.
    """
    methods = _methods(curves, summary)
    figures = {
        "forgetting_curve": _forgetting(methods, summary),
        "gain_curve": _gain(methods, summary),
        "trade_off": _trade_off(methods, summary),
    }
    if len(summary["groups"]) > len(summary["methods"]):
        figures["learning_rates"] = _learning_rates(methods, summary)
    return figures


def render(figure: Figure, format: str) -> bytes:
    """Return the figure as "png" (200 dots per inch) or "svg", without a date."""
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format=format, dpi=200, metadata=metadata[format])
    return buffer.getvalue()


def save_figure(path: Path, figure: Figure) -> None:
    """Write `<path>.png` and `<path>.svg`."""
    for format in ("png", "svg"):
        files.replace(path.with_name(f"{path.name}.{format}"), render(figure, format))


def _methods(curves: pa.Table, summary: Mapping[str, Any]) -> list[_Method]:
    runs = summary["runs"]

    def paths(row: Mapping[str, Any]) -> list[Trajectory]:
        names = [n for n, r in runs.items() if (r["method"], r["lr"]) == (row["method"], row["lr"])]
        return [trajectory(curves, name, summary["target"], summary["upstream"]) for name in names]

    return [
        _Method(
            f"{name}, learning rate {row['lr']:g}",
            _COLOURS[i % len(_COLOURS)],
            _MARKERS[i % len(_MARKERS)],
            summary["confidence"],
            paths(row),
        )
        for i, (name, row) in enumerate(summary["methods"].items())
    ]


def _styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the house style without changing it for anybody else."""

    @wraps(function)
    def styled(*args: Any) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return function(*args)

    return styled


def _panels(titles: Sequence[str], height: float, **share: Any) -> tuple[Figure, list[Axes]]:
    """A grid with one panel for each title, read row by row."""
    columns = min(len(titles), 2 if len(titles) <= 4 else 3)
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(6.6, height * rows + 0.45), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **share)
    for axes in grid.flat[len(titles) :]:
        axes.remove()
    panels = list(grid.flat[: len(titles)])
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
    return figure, panels


def _legend(figure: Figure, axes: Axes, methods: Sequence[_Method]) -> None:
    handles = [axes.plot([], [], color=m.colour, marker=m.marker, label=m.label)[0] for m in methods]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(methods), 3))


@_styled
def _forgetting(methods: Sequence[_Method], summary: Mapping[str, Any]) -> Figure:
    upstream = summary["upstream"]
    panels, titles = _domains(upstream)
    figure, axes = _panels(titles, 1.95, sharex=True)
    for panel, domain in zip(axes, panels, strict=True):
        base = _loss(methods[0].paths[0], domain, upstream)[0]
        panel.axhline(base, color="#444444", linestyle="--", linewidth=0.9)
        for method in methods:
            _by_step(panel, method, [_loss(path, domain, upstream) for path in method.paths])
    _equal_spans(axes)
    _label(figure, "Training step", "Upstream loss (nats per token)")
    _legend(figure, axes[0], methods)
    return figure


@_styled
def _gain(methods: Sequence[_Method], summary: Mapping[str, Any]) -> Figure:
    target = summary["target"]
    figure = Figure(figsize=(6.6, 3.2), layout="constrained")
    axes = figure.subplots()
    base = methods[0].paths[0].loss[target][0]
    axes.axhline(base, color="#444444", linestyle="--", linewidth=0.9)
    if summary["equal_gain"]["levels"]:
        axes.axhline(base - summary["equal_gain"]["largest"], color="#444444", linestyle=":", linewidth=0.9)
    for method in methods:
        _by_step(axes, method, [path.loss[target] for path in method.paths])
    _frame(axes)
    axes.set(title=_plain(target), xlabel="Training step", ylabel="Target loss (nats per token)")
    _legend(figure, axes, methods)
    return figure


@_styled
def _trade_off(methods: Sequence[_Method], summary: Mapping[str, Any]) -> Figure:
    upstream = summary["upstream"]
    panels, titles = _domains(upstream)
    figure, axes = _panels(titles, 1.95, sharex=True, sharey=True)
    for panel, domain in zip(axes, panels, strict=True):
        panel.axhline(0, color="#444444", linestyle="--", linewidth=0.9)
        for method in methods:
            _by_gain(panel, method, domain)
    _frame(*axes)
    _label(figure, "Target gain (nats per token)", "Upstream loss change (nats per token)")
    _legend(figure, axes[0], methods)
    return figure


@_styled
def _learning_rates(methods: Sequence[_Method], summary: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6.6, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_xscale("log")
    for i, (method, name) in enumerate(zip(methods, summary["methods"], strict=True)):
        rows = [row for row in summary["groups"] if row["method"] == name]
        gains = [row["best_gain"] for row in rows]
        changes = [row["change_at_best"][MEAN] for row in rows]
        shift = 1.04 ** (i - (len(methods) - 1) / 2)  # or equal rates' bars would hide each other
        filled = [row["representative"] for row in rows]
        _points(left, method, filled, [row["lr"] * shift for row in rows], gains)
        _points(right, method, filled, gains, changes)
        for row, gain, change in zip(rows, gains, changes, strict=True):
            at = {"xy": (gain["mean"], change["mean"]), "xytext": (4, 4), "textcoords": "offset points"}
            right.annotate(f"{row['lr']:g}", **at, fontsize=6, color=method.colour)
    rates = sorted({row["lr"] for row in summary["groups"]})
    left.set_xticks(rates, [f"{rate:g}" for rate in rates])
    left.minorticks_off()
    left.set(xlabel="Learning rate", ylabel="Best target gain\n(nats per token)")
    right.set(xlabel="Best target gain (nats per token)", ylabel="Mean upstream change\n(nats per token)")
    named = [m._replace(label=name) for m, name in zip(methods, summary["methods"], strict=True)]
    _legend(figure, left, named)
    return figure


def _points(axes: Axes, method: _Method, filled: Sequence[bool], x: Sequence[Any], y: Sequence[Any]) -> None:
    """Points joined by a line, with bars along each axis whose values are intervals."""

    def split(values: Sequence[Any]) -> tuple[list[float], Any]:
        if not isinstance(values[0], Mapping):
            return list(values), None
        bars = [[i["mean"] - i["low"], i["high"] - i["mean"]] for i in values]
        return [i["mean"] for i in values], np.nan_to_num(bars).T

    (x_mean, x_bars), (y_mean, y_bars) = split(x), split(y)
    style = {"color": method.colour, "linewidth": 1.1}
    axes.errorbar(x_mean, y_mean, y_bars, x_bars, elinewidth=0.7, zorder=2, **style)
    for x_i, y_i, is_filled in zip(x_mean, y_mean, filled, strict=True):
        face = method.colour if is_filled else "white"
        axes.plot(x_i, y_i, method.marker, markerfacecolor=face, zorder=3, **style)


def _plain(domain: str) -> str:
    return domain.replace("_", " ")


def _domains(upstream: Sequence[str]) -> tuple[list[str], list[str]]:
    """One panel for each upstream domain and one for their mean, with titles."""
    if len(upstream) == 1:
        return [*upstream], [_plain(upstream[0])]
    return [*upstream, MEAN], [*map(_plain, upstream), f"Mean of {len(upstream)} domains"]


def _loss(path: Trajectory, domain: str, upstream: Sequence[str]) -> np.ndarray:
    return np.mean([path.loss[d] for d in upstream], axis=0) if domain == MEAN else path.loss[domain]


def _by_step(axes: Axes, method: _Method, values: Sequence[np.ndarray]) -> None:
    """Values against step: thin seeds, thick mean, band."""
    steps = [path.steps_N for path in method.paths]
    if len(values) > 1:
        for steps_N, values_N in zip(steps, values, strict=True):
            axes.plot(steps_N, values_N, color=method.colour, linewidth=0.6, alpha=0.55)
    common = sorted(set.intersection(*(set(s.tolist()) for s in steps)))
    at = [np.asarray(v)[np.isin(s, common)] for s, v in zip(steps, values, strict=True)]
    _mean_and_band(axes, method, np.array(common), np.array(at))
    for steps_N, values_N in zip(steps, values, strict=True):
        _mark_divergence(axes, method, steps_N, values_N)


def _by_gain(axes: Axes, method: _Method, domain: str) -> None:
    """Upstream change against target gain: the path of one seed, or the mean at equal gain of several."""
    if len(method.paths) == 1:
        (path,) = method.paths
        axes.plot(path.gain_N, path.change[domain], color=method.colour, marker=method.marker, markersize=3.2)
    else:
        for path in method.paths:
            axes.plot(path.gain_N, path.change[domain], color=method.colour, linewidth=0.6, alpha=0.55)
        gain_G = np.linspace(0, min(np.nanmax(path.gain_N) for path in method.paths), 49)
        change_SG = np.array([[crossing(p, g).change[domain] for g in gain_G] for p in method.paths])
        _mean_and_band(axes, method, gain_G, change_SG)
    for path in method.paths:
        _mark_divergence(axes, method, path.gain_N, path.change[domain])


def _mean_and_band(axes: Axes, method: _Method, x_N: np.ndarray, values_SN: np.ndarray) -> None:
    every = max(1, len(x_N) // 8)
    axes.plot(x_N, values_SN.mean(0), color=method.colour, marker=method.marker, markevery=every)
    if len(values_SN) > 1:
        bands = [stats.interval(values_S, method.level) for values_S in values_SN.T]
        low, high = [b.low for b in bands], [b.high for b in bands]
        axes.fill_between(x_N, low, high, color=method.colour, alpha=0.16, linewidth=0)


def _mark_divergence(axes: Axes, method: _Method, x_N: np.ndarray, values_N: np.ndarray) -> None:
    """A cross where a run was last finite, if it did not stay so."""
    finite = np.flatnonzero(np.isfinite(x_N) & np.isfinite(values_N))
    if len(finite) and finite[-1] < len(values_N) - 1:
        axes.plot(x_N[finite[-1]], values_N[finite[-1]], "x", color=method.colour, markersize=7, markeredgewidth=1.6)


def _extent(axes: Axes) -> tuple[float, float]:
    """The lowest and highest finite value of the lines (not of the bands)."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    values = values[np.isfinite(values)]
    return float(values.min()), float(values.max())


def _frame(*axes: Axes) -> None:
    """Fit the y axis to the lines, so that a wide band cannot flatten them."""
    extents = [_extent(panel) for panel in axes]
    low, high = min(e[0] for e in extents), max(e[1] for e in extents)
    margin = 0.12 * (high - low) or 0.1
    for panel in axes:
        panel.set_ylim(low - margin, high + margin)


def _equal_spans(axes: Sequence[Axes]) -> None:
    """Give all panels the same span of y, so that their slopes can be compared."""
    extents = [_extent(panel) for panel in axes]
    half = 0.6 * max(high - low for low, high in extents) or 0.1
    for panel, (low, high) in zip(axes, extents, strict=True):
        panel.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)


def _label(figure: Figure, x: str, y: str) -> None:
    figure.supxlabel(x, fontsize=8)
    figure.supylabel(y, fontsize=8)
