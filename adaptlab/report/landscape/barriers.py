"""The loss along straight lines between models, and how high its barriers are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptlab import stats
from adaptlab.report.figures import Axes, Figure, Look, frame, grid, legend, looks, name_axes, styled
from adaptlab.report.landscape.data import Lines
from adaptlab.report.words import plain

__all__ = ["draw_barriers", "draw_lines", "excess"]


def excess(loss_ST: np.ndarray, t_T: np.ndarray) -> np.ndarray:
    """Return by how much the loss lies above the straight line between its ends, `[S, T]`.

        e(t) = L(t) - (1 - t) L(0) - t L(1)

    Its maximum over t is the barrier of Entezari et al. 2022 (arXiv:2110.06296, definition 2.1).

    Args:
      loss_ST: the losses.
      t_T: where on the line, from 0 to 1.
    """
    return loss_ST - (1 - t_T) * loss_ST[:, :1] - t_T * loss_ST[:, -1:]


@styled
def draw_lines(lines: Sequence[Lines], x_label: str, confidence: float) -> Figure:
    """Return one panel for each domain: the loss above the chord between the ends, mean and band over seeds."""
    domains = list(dict.fromkeys(domain for line in lines for domain in line.loss))
    figure, panels = grid([plain(domain) for domain in domains], 2.1, sharex=True)
    named = looks([line.label for line in lines])
    for axes, domain in zip(panels, domains, strict=True):
        axes.axhline(0, color="#444444", linestyle="--", linewidth=0.9)
        for look, line in zip(named, lines, strict=True):
            if domain in line.loss:
                _band(axes, look, line.t_T, excess(line.loss[domain], line.t_T), confidence)
        frame(axes)
    name_axes(figure, x_label, "Loss above the chord between the ends (nats per token)")
    legend(figure, panels[0], [look._replace(label=plain(look.label)) for look in named])
    return figure


def _band(axes: Axes, look: Look, t_T: np.ndarray, values_ST: np.ndarray, confidence: float) -> None:
    found = [stats.interval(values_S, confidence) for values_S in values_ST.T]
    axes.plot(t_T, [i.mean for i in found], color=look.colour, marker=look.marker)
    axes.fill_between(t_T, [i.low for i in found], [i.high for i in found], color=look.colour, alpha=0.12, linewidth=0)
    if len(values_ST) > 1:
        for values_T in values_ST:
            axes.plot(t_T, values_T, color=look.colour, linewidth=0.5, alpha=0.5)


@styled
def draw_barriers(barriers: Mapping[str, Mapping[float, Sequence[float]]], tolerance: float, y_label: str) -> Figure:
    """Return barrier against learning rate: one point for each run, a line through the means.

    Args:
      barriers: `{method: {learning rate: [barrier of each seed]}}`.
      tolerance: what counts as none; the dashed line.
      y_label: barrier of what, with its unit.
    """
    figure = Figure(figsize=(6.6, 3.2), layout="constrained")
    axes, named = figure.subplots(), looks([*barriers])
    for i, (look, rates) in enumerate(zip(named, barriers.values(), strict=True)):
        shift = 1.04 ** (i - (len(named) - 1) / 2)  # or equal rates' points would hide each other
        points = [(rate * shift, value) for rate, values in rates.items() for value in values]
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker}
        axes.plot(*zip(*points, strict=True), linestyle="none", markersize=3, alpha=0.6, **style)
        axes.plot([rate * shift for rate in rates], [float(np.mean(v)) for v in rates.values()], **style)
    axes.axhline(tolerance, color="#444444", linestyle="--", linewidth=0.9)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=max(tolerance, 1e-6))
    axes.set_ylim(bottom=0)
    axes.set(xlabel="Learning rate", ylabel=y_label)
    legend(figure, axes, [look._replace(label=plain(look.label)) for look in named])
    return figure
