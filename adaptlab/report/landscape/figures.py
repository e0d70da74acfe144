"""Loss surfaces on paper: contours and surfaces over a plane, with models and trajectories on them."""

from typing import Any

import numpy as np

from adaptlab.report.figures import Axes, Figure, Look, grid, looks, name_axes, styled
from adaptlab.report.landscape.data import Surface
from adaptlab.report.landscape.scale import Scale, ceiling, heights, scale_of
from adaptlab.report.words import plain

__all__ = ["draw_contours", "draw_surface"]

_COLOURS = "viridis"  # lightness rises evenly: it survives grey printing and the common colour blindnesses


@styled
def draw_contours(surface: Surface) -> Figure:
    """Return one panel of contours for each domain, each on its own scale of losses.

    Rings are spaced evenly in √(L - least), so that a quadratic bowl has evenly spaced ones; where a loss is not finite
    the panel is blank.
    """
    titles = [plain(domain) for domain in surface.loss]
    figure, panels = grid(titles, 2.7, sharex=True, sharey=True)
    named = looks([*surface.paths])
    for axes, loss_YX in zip(panels, surface.loss.values(), strict=True):
        filled = _contours(axes, surface, loss_YX)
        bar = figure.colorbar(filled[0], ax=axes, pad=0.02, aspect=25, shrink=0.75)
        _label_bar(bar, filled[1])
        for look in named:
            _path(axes, look, surface.paths[look.label])
        _marks(axes, surface)
        axes.set_aspect("equal", adjustable="box")
        axes.grid(False)
        axes.set_xlim(surface.x_X[0], surface.x_X[-1])
        axes.set_ylim(surface.y_Y[0], surface.y_Y[-1])
    name_axes(figure, plain(surface.x_label), plain(surface.y_label))
    if named:
        figure.legend(handles=[_handle(panels[0], look) for look in named], loc="outside upper center", ncols=3)
    return figure


def _contours(axes: Axes, surface: Surface, loss_YX: np.ndarray) -> tuple[Any, Scale]:
    scale = scale_of(loss_YX)
    s_YX = np.ma.masked_invalid(scale.of(loss_YX))
    filled = axes.contourf(surface.x_X, surface.y_Y, s_YX, levels=scale.levels, cmap=_COLOURS)
    axes.contour(surface.x_X, surface.y_Y, s_YX, levels=scale.levels, colors="white", linewidths=0.3, alpha=0.6)
    return filled, scale


def _label_bar(bar: Any, scale: Scale) -> None:
    ticks = scale.levels[::3]
    bar.set_ticks(ticks.tolist(), labels=[f"{loss:.3g}" for loss in scale.loss(ticks)])
    bar.set_label("Loss (nats per token)", fontsize=7)


def _path(axes: Axes, look: Look, xy_K2: np.ndarray) -> None:
    """A trajectory, edged in black so that it shows on any colour."""
    axes.plot(xy_K2[:, 0], xy_K2[:, 1], color="black", linewidth=2.2)
    style = {"markersize": 3.2, "markeredgecolor": "black", "markeredgewidth": 0.5}
    axes.plot(xy_K2[:, 0], xy_K2[:, 1], color=look.colour, marker=look.marker, linewidth=1.1, **style)


def _handle(axes: Axes, look: Look) -> Any:
    label = f"trajectory of {plain(look.label)}"
    return axes.plot([], [], color=look.colour, marker=look.marker, markeredgecolor="black", label=label)[0]


def _marks(axes: Axes, surface: Surface) -> None:
    for label, (x, y) in surface.marks.items():
        axes.plot([x], [y], marker="o", markersize=5, color="white", markeredgecolor="black", zorder=5)
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.75, "linewidth": 0}
        text = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": 7, "bbox": box, "zorder": 6}
        axes.annotate(plain(label), (x, y), **text)


@styled
def draw_surface(surface: Surface) -> Figure:
    """Return the surfaces in three dimensions, one panel for each domain, seen from one corner.

    The highest twentieth of the losses is cut off, or a corner where the loss explodes would flatten the rest.
    """
    columns = min(2, len(surface.loss))
    rows = -(-len(surface.loss) // columns)
    figure = Figure(figsize=(6.6, 2.9 * rows), layout="constrained")
    named = looks([*surface.paths])
    for i, (domain, loss_YX) in enumerate(surface.loss.items()):
        axes: Any = figure.add_subplot(rows, columns, i + 1, projection="3d")
        top = ceiling(loss_YX)
        x_YX, y_YX = np.meshgrid(surface.x_X, surface.y_Y)
        shown = np.clip(np.where(np.isfinite(loss_YX), loss_YX, top), None, top)
        axes.plot_surface(x_YX, y_YX, shown, cmap=_COLOURS, linewidth=0.15, edgecolor="#33333355", alpha=0.92)
        for look in named:
            xy_K2 = surface.paths[look.label]
            z_K = np.clip(heights(surface, loss_YX, xy_K2), None, top)
            axes.plot(xy_K2[:, 0], xy_K2[:, 1], z_K, color=look.colour, marker=look.marker, markersize=2.5, zorder=10)
        axes.set_title(plain(domain))
        axes.set_zlabel("Loss (nats per token)", fontsize=6)
        axes.tick_params(labelsize=5, pad=-2)
        axes.locator_params(nbins=5)
        axes.view_init(elev=32, azim=-60)
    name_axes(figure, plain(surface.x_label), plain(surface.y_label))
    if named:
        first = figure.axes[0]
        handles = [first.plot([], [], color=n.colour, marker=n.marker, label=plain(n.label))[0] for n in named]
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure
