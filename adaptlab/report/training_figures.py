"""Figures of what happens in training: each method at its best learning rate, against step and against gain."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from adaptlab import stats
from adaptlab.report.figures import Axes, Figure, Look, extent, frame, grid, legend, looks, name_axes, styled
from adaptlab.report.trajectory import MEAN, Trajectory, crossing, trajectory
from adaptlab.report.words import plain

__all__ = ["draw_training"]


class _Method(NamedTuple):
    """What is drawn for one method at its representative learning rate."""

    look: Look
    level: float  # of its intervals
    paths: list[Trajectory]  # one for each seed


def draw_training(curves: pa.Table, summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the forgetting curve, the gain curve and the trade-off between the two."""
    methods = _methods(curves, summary)
    return {
        "forgetting_curve": _forgetting(methods, summary),
        "gain_curve": _gain(methods, summary),
        "trade_off": _trade_off(methods, summary),
    }


def _methods(curves: pa.Table, summary: Mapping[str, Any]) -> list[_Method]:
    runs = summary["runs"]

    def paths(row: Mapping[str, Any]) -> list[Trajectory]:
        names = [n for n, r in runs.items() if (r["method"], r["lr"]) == (row["method"], row["lr"])]
        return [trajectory(curves, name, summary["target"], summary["upstream"]) for name in names]

    named = looks([f"{name}, learning rate {row['lr']:g}" for name, row in summary["methods"].items()])
    rows = summary["methods"].values()
    return [_Method(look, summary["confidence"], paths(row)) for look, row in zip(named, rows, strict=True)]


@styled
def _forgetting(methods: Sequence[_Method], summary: Mapping[str, Any]) -> Figure:
    upstream = summary["upstream"]
    panels, titles = _domains(upstream)
    figure, axes = grid(titles, 1.95, sharex=True)
    for panel, domain in zip(axes, panels, strict=True):
        base = _loss(methods[0].paths[0], domain, upstream)[0]
        panel.axhline(base, color="#444444", linestyle="--", linewidth=0.9)
        for method in methods:
            _by_step(panel, method, [_loss(path, domain, upstream) for path in method.paths])
    _equal_spans(axes)
    name_axes(figure, "Training step", "Upstream loss (nats per token)")
    legend(figure, axes[0], [method.look for method in methods])
    return figure


@styled
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
    frame(axes)
    axes.set(title=plain(target), xlabel="Training step", ylabel="Target loss (nats per token)")
    legend(figure, axes, [method.look for method in methods])
    return figure


@styled
def _trade_off(methods: Sequence[_Method], summary: Mapping[str, Any]) -> Figure:
    upstream = summary["upstream"]
    panels, titles = _domains(upstream)
    figure, axes = grid(titles, 1.95, sharex=True, sharey=True)
    for panel, domain in zip(axes, panels, strict=True):
        panel.axhline(0, color="#444444", linestyle="--", linewidth=0.9)
        for method in methods:
            _by_gain(panel, method, domain)
    frame(*axes)
    name_axes(figure, "Target gain (nats per token)", "Upstream loss change (nats per token)")
    legend(figure, axes[0], [method.look for method in methods])
    return figure


def _domains(upstream: Sequence[str]) -> tuple[list[str], list[str]]:
    """One panel for each upstream domain and one for their mean, with titles."""
    if len(upstream) == 1:
        return [*upstream], [plain(upstream[0])]
    return [*upstream, MEAN], [*map(plain, upstream), f"Mean of {len(upstream)} domains"]


def _loss(path: Trajectory, domain: str, upstream: Sequence[str]) -> np.ndarray:
    return np.mean([path.loss[d] for d in upstream], axis=0) if domain == MEAN else path.loss[domain]


def _by_step(axes: Axes, method: _Method, values: Sequence[np.ndarray]) -> None:
    """Values against step: thin seeds, thick mean, band."""
    steps = [path.steps_N for path in method.paths]
    if len(values) > 1:
        for steps_N, values_N in zip(steps, values, strict=True):
            axes.plot(steps_N, values_N, color=method.look.colour, linewidth=0.6, alpha=0.55)
    common = sorted(set.intersection(*(set(s.tolist()) for s in steps)))
    at = [np.asarray(v)[np.isin(s, common)] for s, v in zip(steps, values, strict=True)]
    _mean_and_band(axes, method, np.array(common), np.array(at))
    for steps_N, values_N in zip(steps, values, strict=True):
        _mark_divergence(axes, method, steps_N, values_N)


def _by_gain(axes: Axes, method: _Method, domain: str) -> None:
    """Upstream change against target gain: the path of one seed, or the mean at equal gain of several."""
    if len(method.paths) == 1:
        (path,) = method.paths
        axes.plot(path.gain_N, path.change[domain], color=method.look.colour, marker=method.look.marker, markersize=3.2)
    else:
        for path in method.paths:
            axes.plot(path.gain_N, path.change[domain], color=method.look.colour, linewidth=0.6, alpha=0.55)
        gain_G = np.linspace(0, min(np.nanmax(path.gain_N) for path in method.paths), 49)
        change_SG = np.array([[crossing(p, g).change[domain] for g in gain_G] for p in method.paths])
        _mean_and_band(axes, method, gain_G, change_SG)
    for path in method.paths:
        _mark_divergence(axes, method, path.gain_N, path.change[domain])


def _mean_and_band(axes: Axes, method: _Method, x_N: np.ndarray, values_SN: np.ndarray) -> None:
    every = max(1, len(x_N) // 8)
    axes.plot(x_N, values_SN.mean(0), color=method.look.colour, marker=method.look.marker, markevery=every)
    if len(values_SN) > 1:
        bands = [stats.interval(values_S, method.level) for values_S in values_SN.T]
        low, high = [b.low for b in bands], [b.high for b in bands]
        axes.fill_between(x_N, low, high, color=method.look.colour, alpha=0.16, linewidth=0)


def _mark_divergence(axes: Axes, method: _Method, x_N: np.ndarray, values_N: np.ndarray) -> None:
    """A cross where a run was last finite, if it did not stay so."""
    finite = np.flatnonzero(np.isfinite(x_N) & np.isfinite(values_N))
    if len(finite) and finite[-1] < len(values_N) - 1:
        axes.plot(
            x_N[finite[-1]], values_N[finite[-1]], "x", color=method.look.colour, markersize=7, markeredgewidth=1.6
        )


def _equal_spans(axes: Sequence[Axes]) -> None:
    """Give all panels the same span of y, so that their slopes can be compared."""
    extents = [extent(panel) for panel in axes]
    half = 0.6 * max(high - low for low, high in extents) or 0.1
    for panel, (low, high) in zip(axes, extents, strict=True):
        panel.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)
