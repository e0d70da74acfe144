"""Figures of what depends on the learning rate: gain, forgetting and the usable zone, over rates and methods."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaptlab import stats
from adaptlab.report.figures import Axes, Figure, Look, grid, legend, looks, name_axes, styled
from adaptlab.report.trajectory import MEAN
from adaptlab.report.words import number, plain

__all__ = ["draw_rates"]

_CROSS = "\N{MULTIPLICATION SIGN}"  # marks runs that diverged


class _Cell(NamedTuple):
    """The runs of one method at one learning rate."""

    gains: list[float]  # at the last step, of the runs that did not diverge
    changes: list[float]  # their mean upstream change
    diverged: int


Cells = dict[tuple[str, float], _Cell]


def draw_rates(summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the learning rates, the heat maps and the usable zones; nothing if each method has one rate."""
    if len(summary["groups"]) <= len(summary["methods"]):
        return {}
    methods, cells = looks([*summary["methods"]]), _cells(summary)
    figures = {"learning_rates": _learning_rates(methods, summary), "heat_maps": _heat_maps(cells, summary)}
    if summary["zones"]:
        figures["usable_zones"] = _zones(methods, cells, summary)
    return figures


def _cells(summary: Mapping[str, Any]) -> Cells:
    cells = {}
    for row in summary["groups"]:
        key = row["method"], row["lr"]
        here = {name: run for name, run in summary["runs"].items() if (run["method"], run["lr"]) == key}
        kept = [run for name, run in here.items() if name not in row["diverged"]]
        gains, changes = [run["final_gain"] for run in kept], [run["final_change"][MEAN] for run in kept]
        cells[key] = _Cell(gains, changes, len(row["diverged"]))
    return cells


@styled
def _learning_rates(methods: Sequence[Look], summary: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6.6, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_xscale("log")
    for i, method in enumerate(methods):
        rows = [row for row in summary["groups"] if row["method"] == method.label]
        gains = [row["best_gain"] for row in rows]
        changes = [row["change_at_best"][MEAN] for row in rows]
        shift = 1.04 ** (i - (len(methods) - 1) / 2)  # or equal rates' bars would hide each other
        filled = [row["representative"] for row in rows]
        _points(left, method, filled, [row["lr"] * shift for row in rows], gains)
        _points(right, method, filled, gains, changes)
        for row, gain, change in zip(rows, gains, changes, strict=True) if len(methods) <= 4 else ():
            at = {"xy": (gain["mean"], change["mean"]), "xytext": (4, 4), "textcoords": "offset points"}
            right.annotate(f"{row['lr']:g}", **at, fontsize=6, color=method.colour)
    rates = sorted({row["lr"] for row in summary["groups"]})
    left.set_xticks(rates, [f"{rate:g}" for rate in rates])
    left.minorticks_off()
    left.set(xlabel="Learning rate", ylabel="Best target gain\n(nats per token)")
    right.set(xlabel="Best target gain (nats per token)", ylabel="Mean upstream change\n(nats per token)")
    legend(figure, left, methods)
    return figure


def _points(axes: Axes, method: Look, filled: Sequence[bool], x: Sequence[Any], y: Sequence[Any]) -> None:
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


@styled
def _heat_maps(cells: Cells, summary: Mapping[str, Any]) -> Figure:
    """Final gain, as a share of each method's best, and final forgetting; a cross counts the runs that diverged."""
    names, rates = [*summary["methods"]], list(dict.fromkeys(f"{rate:g}" for rate in sorted(r for _, r in cells)))
    gain_MR, change_MR = np.full((2, len(names), len(rates)), np.nan)
    for (name, rate), cell in cells.items():
        if cell.gains:
            at = names.index(name), rates.index(f"{rate:g}")
            gain_MR[at], change_MR[at] = np.mean(cell.gains), np.mean(cell.changes)
    top_M = np.nan_to_num(gain_MR, nan=0.0).max(1)
    share_MR = gain_MR / np.where(top_M > 0, top_M, np.nan)[:, None]
    risen = change_MR[change_MR > 0]
    limit = (
        float(np.quantile(risen, 0.9, method="lower")) if risen.size else 0.1
    )  # one ruined cell must not bleach the others
    figure = Figure(figsize=(6.6, 2 * (0.27 * len(names) + 0.75)), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    scales = (
        ("viridis", 0.0, 1.0, "min", "Share of the\nmethod's best"),
        ("RdBu_r", -limit, limit, "both", "Nats per token"),
    )
    for axes, colours_MR, text_MR, scale in zip(
        (upper, lower), (share_MR, change_MR), (gain_MR, change_MR), scales, strict=True
    ):
        _heat_map(axes, colours_MR, scale)
        _numbers(axes, text_MR, {(names.index(m), rates.index(f"{r:g}")): cell for (m, r), cell in cells.items()})
        axes.set_yticks(np.arange(len(names)), [plain(name) for name in names])
    upper.set_title(f"Final gain on {plain(summary['target'])} (nats per token)")
    lower.set_title("Final mean upstream change (nats per token)")
    lower.set_xticks(np.arange(len(rates)), rates)
    lower.set_xlabel("Learning rate")
    return figure


def _heat_map(axes: Axes, values_MR: np.ndarray, scale: tuple[str, float, float, str, str]) -> None:
    colours, low, high, extend, name = scale
    edges = [np.arange(n + 1) - 0.5 for n in values_MR.shape]
    mesh = axes.pcolormesh(
        edges[1], edges[0], values_MR, cmap=colours, vmin=low, vmax=high, edgecolors="white", linewidth=0.8
    )
    bar = axes.figure.colorbar(mesh, ax=axes, extend=extend, pad=0.01, aspect=12)
    bar.set_label(name, fontsize=7)
    bar.outline.set_visible(False)
    axes.grid(False)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _numbers(axes: Axes, values_MR: np.ndarray, cells: Mapping[tuple[int, int], _Cell]) -> None:
    """Write each cell's number on it, in the ink that its colour bears."""
    (mesh,) = axes.collections
    faces = np.asarray(mesh.to_rgba(np.asarray(mesh.get_array()))).reshape(*values_MR.shape, 4)
    for (m, r), cell in cells.items():
        value = values_MR[m, r]
        cross = "" if not cell.diverged else f"{_CROSS}{cell.diverged}" if cell.gains else _CROSS
        dark = np.isfinite(value) and faces[m, r, :3] @ [0.299, 0.587, 0.114] < 0.5
        text = f"{number(value, 2)} {cross}".strip() if cell.gains else cross
        ink = "white" if dark else "black" if cell.gains else "#b00000"
        axes.text(r, m, text, ha="center", va="center", fontsize=6, color=ink)


@styled
def _zones(methods: Sequence[Look], cells: Cells, summary: Mapping[str, Any]) -> Figure:
    """Final gain against learning rate, one panel to a method, with its usable zone shaded."""
    zones = summary["zones"]
    shown = [look for look in methods if look.label in zones]
    figure, panels = grid([_zone_title(plain(look.label), zones[look.label]) for look in shown], 1.75, sharex=True)
    for axes, look in zip(panels, shown, strict=True):
        rates = sorted(rate for name, rate in cells if name == look.label)
        _zone(axes, look, rates, [cells[look.label, rate] for rate in rates], zones[look.label], summary["confidence"])
    rates = sorted({row["lr"] for row in summary["groups"] if row["method"] in zones})
    ticks = rates[:: -(-len(rates) // 5)]
    panels[0].set_xscale("log")
    panels[0].minorticks_off()
    panels[0].set_xticks(ticks, [f"{rate:g}" for rate in ticks])
    name_axes(figure, "Learning rate", "Final target gain (nats per token)")
    return figure


def _zone(
    axes: Axes, look: Look, rates: Sequence[float], row: Sequence[_Cell], zone: Mapping[str, Any], level: float
) -> None:
    found = [stats.interval([*cell.gains, *[0.0] * cell.diverged], level) for cell in row]
    mean_R = np.array([i.mean for i in found])
    bars = np.nan_to_num([[i.mean - i.low, i.high - i.mean] for i in found]).T
    if np.isfinite(zone["low"]):
        axes.axvspan(zone["low"], zone["high"], color=look.colour, alpha=0.14, linewidth=0)
        for edge, is_open in ((zone["low"], zone["open_low"]), (zone["high"], zone["open_high"])):
            axes.axvline(edge, color=look.colour, linewidth=0.8, linestyle=":" if is_open else "-")
        axes.axhline(zone["fraction"] * mean_R.max(), color="#444444", linestyle="--", linewidth=0.8)
    axes.errorbar(rates, mean_R, bars, color=look.colour, marker=look.marker, linewidth=1.2, elinewidth=0.7)
    lost = [i for i, cell in enumerate(row) if cell.diverged]
    axes.plot(np.take(rates, lost), mean_R[lost], "x", color="#b00000", markersize=7, markeredgewidth=1.4, zorder=4)
    low, high = min(mean_R.min(), 0.0), max(mean_R.max(), 0.0) or 0.1
    axes.set_ylim(max(low, -0.5 * high) - 0.06 * high, 1.15 * high)  # what was ruined must not flatten the rest


def _zone_title(name: str, zone: Mapping[str, Any]) -> str:
    width = zone["width"]["mean"]
    return f"{name}: {'≥ ' if zone['censored'] else ''}{number(width, 2)} decades"
