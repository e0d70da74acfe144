"""Spectra of curvature, with their nodes and error bars, and curvature by direction."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptlab.report.figures import Axes, Figure, Look, legend, looks, styled
from adaptlab.report.landscape.data import Spectrum
from adaptlab.report.words import plain

__all__ = ["draw_directions", "draw_forecasts", "draw_spectra"]

_FLOOR = 1e-6  # of the highest density: below is the smoothing, not the matrix


@styled
def draw_spectra(spectra: Sequence[Spectrum], x_label: str) -> Figure:
    """Return one panel for each spectrum, all on the same axes.

    Line and band: the density and its interval over probes. Ticks at the bottom: the Ritz values of the probes, the
    darker the more they weigh. Triangles: eigenvalues computed each by itself, with the bound of their error.
    """
    figure = Figure(figsize=(6.6, 1.75 * len(spectra) + 0.6), layout="constrained")
    panels = figure.subplots(len(spectra), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    top = max(float(np.max(s.density_G)) for s in spectra)
    for axes, look, spectrum in zip(panels, looks([s.label for s in spectra]), spectra, strict=True):
        _density(axes, look, spectrum)
        axes.set_title(plain(spectrum.label))
        axes.set_yscale("log")
        axes.set_ylim(_FLOOR * top, 3 * top)
        axes.set_xscale("symlog", linthresh=_threshold(spectra))
    figure.supxlabel(x_label, fontsize=8)
    figure.supylabel("Density of eigenvalues", fontsize=8)
    return figure


def _density(axes: Axes, look: Look, spectrum: Spectrum) -> None:
    axes.plot(spectrum.value_G, np.maximum(spectrum.density_G, 1e-300), color=look.colour, linewidth=1.2)
    if np.isfinite(spectrum.low_G).any():
        low_G = np.maximum(spectrum.low_G, 1e-300)  # an interval below zero leaves the frame on a logarithmic axis
        axes.fill_between(spectrum.value_G, low_G, spectrum.high_G, color=look.colour, alpha=0.2, linewidth=0)
    node_M, weight_M = spectrum.node_SM.ravel(), spectrum.weight_SM.ravel()
    shade_M = np.clip(0.25 + 0.75 * weight_M / max(float(weight_M.max()), 1e-30), 0, 1)
    transform = axes.get_xaxis_transform()  # the bottom of the frame, whatever the density
    axes.vlines(node_M, 0, 0.05, transform=transform, color=look.colour, alpha=shade_M, linewidth=0.8)
    if len(spectrum.eigenvalue_E):
        at_E = np.full(len(spectrum.eigenvalue_E), 0.12)
        style = {"marker": "v", "markersize": 4, "linestyle": "none", "color": "black", "elinewidth": 0.8}
        axes.errorbar(spectrum.eigenvalue_E, at_E, xerr=spectrum.bound_E, transform=transform, **style)


def _threshold(spectra: Sequence[Spectrum]) -> float:
    """Where the axis of eigenvalues turns from linear to logarithmic: the power of ten from a hundredth of the largest.

    Below it the smoothing decides the shape.
    """
    largest = max(float(np.max(np.abs(np.concatenate([s.node_SM.ravel(), s.eigenvalue_E])))) for s in spectra)
    return 10.0 ** math.ceil(math.log10(1e-2 * largest)) if largest > 0 else 1e-2


@styled
def draw_directions(rows: Mapping[str, Mapping[str, Any]], y_label: str) -> Figure:
    """Return the curvature of the base along updates beside that along random directions.

    Args:
      rows: `{method: {"update": [one number for each run], "random": [the same]}}`.
      y_label: what curvature, with its unit.
    """
    figure = Figure(figsize=(6.6, 3.2), layout="constrained")
    axes, named = figure.subplots(), looks([*rows])
    for i, (look, row) in enumerate(zip(named, rows.values(), strict=True)):
        for shift, kind, face in ((-0.14, "update", look.colour), (0.14, "random", "white")):
            values = np.asarray(row[kind], float)
            x = i + shift + 0.05 * np.linspace(-1, 1, len(values))
            style: dict[str, Any] = {"marker": look.marker, "color": look.colour, "markerfacecolor": face}
            style["linestyle"] = "none"
            axes.plot(x, values, markersize=4, **style)
            axes.plot([i + shift - 0.1, i + shift + 0.1], [np.median(values)] * 2, color="black", linewidth=1.4)
    every = np.concatenate([np.asarray(v, float) for row in rows.values() for v in (row["update"], row["random"])])
    least = np.min(np.abs(every[every != 0]), initial=1.0)
    axes.set_yscale("symlog", linthresh=max(float(least), 1e-12))
    axes.axhline(0, color="#444444", linestyle="--", linewidth=0.9)
    axes.set_xticks(range(len(named)), [plain(look.label) for look in named], rotation=20, ha="right")
    axes.set_ylabel(y_label)
    style: dict[str, Any] = {"marker": "o", "color": "#444444", "linestyle": "none"}
    handles = [
        axes.plot([], [], markerfacecolor=face, label=label, **style)[0]
        for face, label in (("#444444", "along the update"), ("white", "along random directions"))
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


@styled
def draw_forecasts(rows: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Return forgetting against its second-order forecast from the base: one point for each run, the diagonal dashed.

    Args:
      rows: `{method: [(forecast, forgetting), …]}`, in nats per token.
    """
    figure = Figure(figsize=(6.6, 3.8), layout="constrained")
    axes, named = figure.subplots(), looks([*rows])
    for look, points in zip(named, rows.values(), strict=True):
        style = {"color": look.colour, "marker": look.marker, "markersize": 3.5, "linestyle": "none", "alpha": 0.8}
        axes.plot(*zip(*points, strict=True), **style)
    every = np.array([point for points in rows.values() for point in points])
    every = every[np.isfinite(every).all(axis=1)]
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    axes.plot([low, high], [low, high], color="#444444", linestyle="--", linewidth=0.9)
    for set_scale in (axes.set_xscale, axes.set_yscale):
        set_scale("symlog", linthresh=0.01)
    axes.set(
        xlabel="Forecast of the mean upstream change from the base (nats per token)",
        ylabel="Mean upstream change\n(nats per token)",
    )
    legend(figure, axes, [look._replace(label=plain(look.label)) for look in named])
    return figure
