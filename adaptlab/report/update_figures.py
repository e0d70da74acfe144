"""Figures of what updates look like: spectra, ranks over training, subspaces, intruders, and what cutting costs.

Each method is shown at its learning rate of equal gain (`ranks.by_rank`), or where there is none at its best.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from adaptlab import stats
from adaptlab.report.figures import Axes, Figure, Look, extent, frame, grid, legend, looks, name_axes, styled
from adaptlab.report.words import plain

__all__ = ["draw_updates"]

_MOST = 8  # methods in a figure: there are no more colours


class _Rows(NamedTuple):
    """Measurements as columns; `layer` is "" where a matrix has none."""

    method: np.ndarray
    run: np.ndarray
    step: np.ndarray
    what: np.ndarray
    matrix: np.ndarray
    layer: np.ndarray
    value: np.ndarray

    def where(self, **equal: Any) -> "_Rows":
        keep = np.ones(len(self.value), bool)
        for name, value in equal.items():
            keep &= getattr(self, name) == value
        return _Rows(*(column[keep] for column in self))

    def mean_by(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """The distinct values of a column and the mean over the rows of each."""
        keys, index = np.unique(getattr(self, column), return_inverse=True)
        return keys, np.bincount(index, self.value) / np.bincount(index)


def draw_updates(updates: pa.Table, summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figures of what was measured.

    Args:
      updates: see `report.updates`.
      summary: of the study, with "ranks" from `ranks.by_rank`.
    """
    rates = {name: row["lr"] for name, row in summary["methods"].items()}
    rates |= {n: m["equal_rate"] for n, m in summary["ranks"]["methods"].items() if m["equal_rate"] is not None}
    chosen = {name: run["method"] for name, run in summary["runs"].items() if run["lr"] == rates[run["method"]]}
    rows = _read(updates, chosen)
    methods = _shown(summary["ranks"]["methods"], set(rows.method))
    if not methods:
        return {}
    there = set(rows.what)
    final = rows.where(step=rows.step.max())
    figures = {}
    if sigmas := sorted((w for w in there if w.startswith("sigma_")), key=_number):
        figures["update_spectra"] = _spectra(final, methods, sigmas)
    if "stable_rank" in there and len(set(rows.where(what="stable_rank").step)) > 1:
        figures["update_ranks"] = _over_training(rows, methods)
    if "base_overlap_input" in there:
        figures["update_alignment"] = _alignment(final, _shown(summary["ranks"]["methods"], set(rows.method), 4))
    if intruders := sorted((w for w in there if w.startswith("intruders_")), key=_number):
        figures["intruder_dimensions"] = _intruders(final, methods, intruders, summary["confidence"])
    if "truncated" in there:
        figures["truncation"] = _truncation(final, methods, summary)
    if {"relative_norm", "angle"} <= there:
        figures["norm_and_angle"] = _norm_and_angle(
            _read(updates, {n: r["method"] for n, r in summary["runs"].items()}), methods
        )
    return figures


def _shown(methods: Mapping[str, Mapping[str, Any]], there: Set[str], most: int = _MOST) -> list[Look]:
    """Choose methods: the highest rank of each family first, then the lowest, then the rest."""
    by_rank = sorted((name for name in methods if name in there), key=lambda name: methods[name]["rank"] or 0)
    lowest: dict[str, str] = {}
    for name in by_rank:
        lowest.setdefault(methods[name]["family"], name)
    highest = {methods[name]["family"]: name for name in by_rank}
    kept = list(dict.fromkeys([*highest.values(), *lowest.values(), *by_rank]))[:most]
    return looks([name for name in methods if name in kept])


def _legend(figure: Figure, axes: Axes, methods: Sequence[Look]) -> None:
    legend(figure, axes, [look._replace(label=plain(look.label)) for look in methods])


def _plain_numbers(axis: Any, ticks: Sequence[float]) -> None:
    """Ticks at these values within the axis' range, as plain numbers."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


_POWERS_OF_TWO = [2.0**i for i in range(-4, 13)]
_THIRDS = [factor * 10.0**i for i in range(-6, 4) for factor in (1, 3)]


def _number(what: str) -> float:
    return float(what.split("_")[-1])


def _read(updates: pa.Table, methods: Mapping[str, str]) -> _Rows:
    """Read the rows of some runs, given as `{run: method}`."""
    runs = updates["run"].to_numpy(zero_copy_only=False)
    keep = np.isin(runs, [*methods])
    rows = updates.filter(pa.array(keep))
    runs = runs[keep]
    parts = [metric.split("/") for metric in rows["metric"].to_pylist()]
    names = [(p[0], p[1], p[2]) if p[0] == "truncated" else (p[1], p[2], p[3] if len(p) > 3 else "") for p in parts]
    what, matrix, layer = (np.array([n[i] for n in names], dtype=object) for i in range(3))
    method = np.array([methods[run] for run in runs], dtype=object)
    return _Rows(method, runs, rows["step"].to_numpy(), what, matrix, layer, rows["value"].to_numpy())


def _kinds(rows: _Rows) -> list[str]:
    return list(dict.fromkeys(rows.matrix))


def _kind(matrix: str) -> str:
    return matrix.removeprefix("layers.").replace(".", " ").replace("_", " ")


@styled
def _spectra(rows: _Rows, methods: Sequence[Look], sigmas: Sequence[str]) -> Figure:
    """σ_k / σ₁ against k: the mean over layers and seeds, and the range over layers."""
    kinds = _kinds(rows.where(what="sigma_1"))
    figure, panels = grid([_kind(kind) for kind in kinds], 1.6, sharex=True, sharey=True)
    for axes, kind in zip(panels, kinds, strict=True):
        for look in methods:
            here = rows.where(matrix=kind, method=look.label)
            spectra = [here.where(what=what).mean_by("layer") for what in sigmas]
            spectra = [values for _, values in spectra if len(values)]
            if not spectra:
                continue
            share = np.array([values / spectra[0] for values in spectra])
            share = np.where(share > 1e-6, share, np.nan)  # below is rounding
            share = share[np.isfinite(share).any(axis=1)]
            k = [_number(what) for what in sigmas[: len(share)]]
            axes.plot(k, np.nanmean(share, axis=1), color=look.colour, marker=look.marker)
            axes.fill_between(k, *_range(share), color=look.colour, alpha=0.12, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    _plain_numbers(panels[0].xaxis, _POWERS_OF_TWO)
    name_axes(figure, "k", "Singular value, as a share of the largest")
    _legend(figure, panels[0], methods)
    return figure


def _range(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and largest of each row; nan for rows of nothing but nan."""
    low, high = np.fmin.reduce(values, axis=1), np.fmax.reduce(values, axis=1)
    return low, high


@styled
def _over_training(rows: _Rows, methods: Sequence[Look]) -> Figure:
    rows = rows.where(what="stable_rank")
    kinds = _kinds(rows)
    figure, panels = grid([_kind(kind) for kind in kinds], 1.6, sharex=True, sharey=True)
    for axes, kind in zip(panels, kinds, strict=True):
        for look in methods:
            here = rows.where(matrix=kind, method=look.label)
            for layer in dict.fromkeys(here.layer):
                axes.plot(*here.where(layer=layer).mean_by("step"), color=look.colour, linewidth=0.5, alpha=0.5)
            if len(here.value):
                axes.plot(*here.mean_by("step"), color=look.colour, marker=look.marker)
        axes.set_yscale("log", base=2)
    _plain_numbers(panels[0].yaxis, _POWERS_OF_TWO)
    name_axes(figure, "Training step", "Stable rank of the update")
    _legend(figure, panels[0], methods)
    return figure


@styled
def _alignment(rows: _Rows, methods: Sequence[Look]) -> Figure:
    """Overlap over chance by layer and matrix, one row of panels with W and one with the gradient."""
    kinds = _kinds(rows.where(what="chance_input"))
    layers = sorted(
        set(rows.where(what="chance_input").layer), key=lambda layer: [int(i) for i in layer.split(".") if i]
    )
    figure = Figure(figsize=(6.6, 0.7 + 2 * (0.5 + 0.16 * len(layers)) + 0.5), layout="constrained")
    panels = figure.subplots(2, len(methods), squeeze=False, sharex=True, sharey=True)
    grids = {
        (i, j): _over_chance(rows.where(method=look.label), name, kinds, layers)
        for i, name in enumerate(("base", "gradient"))
        for j, look in enumerate(methods)
    }
    limit = max(2.0, float(np.nanmax([np.nanmax(g) for g in grids.values() if np.isfinite(g).any()] or [2.0])))
    bound = float(np.log2(limit))
    for (i, j), values in grids.items():
        axes = panels[i, j]
        edges = [np.arange(n + 1) - 0.5 for n in values.shape]
        axes.pcolormesh(edges[1], edges[0], np.log2(values), cmap="RdBu_r", vmin=-bound, vmax=bound)
        axes.set_title(f"{plain(methods[j].label)}: {('W', 'gradient')[i]}")
        axes.set_yticks(range(len(layers)), layers)
        axes.set_xticks(range(len(kinds)), [_kind(kind).split()[-1] for kind in kinds], rotation=90)
        axes.grid(False)
        axes.tick_params(length=0)
    bar = figure.colorbar(panels[0, 0].collections[0], ax=panels, pad=0.01, aspect=30)
    ticks = np.arange(-np.floor(bound), np.floor(bound) + 1, max(1, bound // 3)).tolist()
    bar.set_ticks(ticks, labels=[f"{2.0**t:g}" for t in ticks])
    bar.set_label("Overlap over chance", fontsize=7)
    name_axes(figure, "Matrix", "Layer")
    return figure


def _over_chance(rows: _Rows, name: str, kinds: Sequence[str], layers: Sequence[str]) -> np.ndarray:
    """`[layers, matrices]`, the mean over seeds and over the two sides."""
    found = np.full((len(layers), len(kinds)), np.nan)
    for i, layer in enumerate(layers):
        for j, kind in enumerate(kinds):
            here = rows.where(layer=layer, matrix=kind)
            sides = [
                here.where(what=f"{name}_overlap_{side}").value.mean() / here.where(what=f"chance_{side}").value.mean()
                for side in ("input", "output")
                if len(here.where(what=f"chance_{side}").value)
            ]
            if sides:
                found[i, j] = max(float(np.mean(sides)), 1e-6)
    return found


@styled
def _intruders(rows: _Rows, methods: Sequence[Look], intruders: Sequence[str], confidence: float) -> Figure:
    figure = Figure(figsize=(6.6, 3.0), layout="constrained")
    axes = figure.subplots()
    for look in methods:
        found = []
        for what in intruders:
            _, by_run = rows.where(what=what, method=look.label).mean_by("run")
            found.append(stats.interval(by_run if len(by_run) else [np.nan], confidence))
        _band(axes, look, [_number(what) for what in intruders], found)
    axes.set_ylim(-0.02 * max(1.0, extent(axes)[1]), 1.1 * max(1.0, extent(axes)[1]))
    axes.set(
        xlabel="ε: a vector is an intruder if no |cosine| to the base's reaches it",
        ylabel="Intruder dimensions\nper matrix",
    )
    _legend(figure, axes, methods)
    return figure


def _band(axes: Axes, look: Look, x: Sequence[float], found: Sequence[stats.Interval]) -> None:
    axes.plot(x, [i.mean for i in found], color=look.colour, marker=look.marker)
    axes.fill_between(x, [i.low for i in found], [i.high for i in found], color=look.colour, alpha=0.12, linewidth=0)


@styled
def _truncation(rows: _Rows, methods: Sequence[Look], summary: Mapping[str, Any]) -> Figure:
    """Gain and forgetting against the rank kept; rank 0 stands at the left, apart."""
    figure = Figure(figsize=(6.6, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = rows.where(what="truncated")
    base = {domain: metrics["loss"] for domain, metrics in summary["base"].items()}
    ticks = sorted({int(rank) for rank in rows.matrix})
    for look in methods:
        here = rows.where(method=look.label)
        ranks = sorted({int(rank) for rank in here.matrix})
        for axes, domains, sign in ((left, [summary["target"]], -1), (right, summary["upstream"], 1)):
            found = []
            for rank in ranks:
                at = here.where(matrix=str(rank))
                change = [dict(zip(*at.where(layer=domain).mean_by("run"), strict=True)) for domain in domains]
                values = [
                    sign * np.mean([c[run] - base[d] for c, d in zip(change, domains, strict=True)])
                    for run in change[0]
                ]
                found.append(stats.interval(values, summary["confidence"]))
            _band(axes, look, [max(rank, 0.5) for rank in ranks], found)
    for axes, name in ((left, "Target gain\n(nats per token)"), (right, "Mean upstream change\n(nats per token)")):
        axes.set_xscale("log", base=2)
        axes.set_xticks([max(rank, 0.5) for rank in ticks], [str(rank) for rank in ticks])
        axes.minorticks_off()
        axes.set(xlabel="Rank kept", ylabel=name)
        frame(axes)
    _legend(figure, left, methods)
    return figure


@styled
def _norm_and_angle(rows: _Rows, methods: Sequence[Look]) -> Figure:
    """One point for each run at each learning rate, averaged over matrices, at the end of training."""
    rows = rows.where(step=rows.step.max())
    figure = Figure(figsize=(6.6, 3.4), layout="constrained")
    axes = figure.subplots()
    for look in methods:
        here = rows.where(method=look.label)
        norm, angle = (
            dict(zip(*here.where(what=what).mean_by("run"), strict=True)) for what in ("relative_norm", "angle")
        )
        style = {"color": look.colour, "linestyle": "none", "markersize": 3.5, "alpha": 0.8}
        axes.plot([*norm.values()], [angle[run] for run in norm], marker=look.marker, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        _plain_numbers(axis, _THIRDS)
    axes.set(
        xlabel="Size of the update, relative to the weight", ylabel="Angle between weight\nand adapted weight (degrees)"
    )
    _legend(figure, axes, methods)
    return figure
