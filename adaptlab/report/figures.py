"""How a figure of a study looks, and how it becomes a file: matplotlib's only door.

Every figure uses matplotlib's objects and no global state, one colour *and* one marker for each method (so
that grey prints can be read), and is the same file bit by bit for the same numbers.
"""

import base64
import io
import math
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptlab.report import files

__all__ = [
    "Axes",
    "Figure",
    "Look",
    "embedded",
    "extent",
    "frame",
    "grid",
    "legend",
    "looks",
    "name_axes",
    "render",
    "save_figure",
    "styled",
]

# Okabe and Ito (2008), distinguishable under the common colour blindnesses; without yellow, which is too
# light for lines on white; with a grey as the eighth.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
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


class Look(NamedTuple):
    """How one method looks in every figure."""

    label: str
    colour: str
    marker: str


def looks(labels: Sequence[str]) -> list[Look]:
    """Return the looks of a study's methods, in its order."""
    return [Look(name, _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(labels)]


def render(figure: Figure, format: str) -> bytes:
    """Return the figure as "png" (200 dots per inch) or "svg", without a date; its layout is settled from then on."""
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        if figure.get_layout_engine() is not None:  # otherwise it is solved again for every file
            figure.draw_without_rendering()
            figure.set_layout_engine(None)
        figure.savefig(buffer, format=format, dpi=200, metadata=metadata[format])
    return buffer.getvalue()


def embedded(figure: Figure) -> str:
    """Return the figure as the source of an `img`, where the identifiers of several SVGs do not meet."""
    return "data:image/svg+xml;base64," + base64.b64encode(render(figure, "svg")).decode()


def save_figure(path: Path, figure: Figure) -> None:
    """Write `<path>.png` and `<path>.svg`."""
    for format in ("png", "svg"):
        files.replace(path.with_name(f"{path.name}.{format}"), render(figure, format))


def styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the house style without changing it for anybody else."""

    @wraps(function)
    def styled(*args: Any) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return function(*args)

    return styled


def grid(titles: Sequence[str], height: float, **share: Any) -> tuple[Figure, list[Axes]]:
    """A grid with one panel for each title, read row by row."""
    columns = min(len(titles), 2 if len(titles) <= 4 else 3)
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(6.6, height * rows + 0.45), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False, **share)
    for axes, above in zip(cells.flat[len(titles) :], cells.flat[len(titles) - columns :], strict=False):
        axes.remove()
        above.tick_params(labelbottom=True)  # it is the lowest of its column now
    panels = list(cells.flat[: len(titles)])
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
    return figure, panels


def legend(figure: Figure, axes: Axes, methods: Sequence[Look]) -> None:
    """A legend of methods above the figure."""
    handles = [axes.plot([], [], color=m.colour, marker=m.marker, label=m.label)[0] for m in methods]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(methods), 3))


def extent(axes: Axes) -> tuple[float, float]:
    """The lowest and highest finite value of the lines (not of the bands)."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    values = values[np.isfinite(values)]
    return float(values.min()), float(values.max())


def frame(*axes: Axes) -> None:
    """Fit the y axis to the lines, so that a wide band cannot flatten them."""
    extents = [extent(panel) for panel in axes]
    low, high = min(e[0] for e in extents), max(e[1] for e in extents)
    margin = 0.12 * (high - low) or 0.1
    for panel in axes:
        panel.set_ylim(low - margin, high + margin)


def name_axes(figure: Figure, x: str, y: str) -> None:
    """Name the axes that all panels share."""
    figure.supxlabel(x, fontsize=8)
    figure.supylabel(y, fontsize=8)
