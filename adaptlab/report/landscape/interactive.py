"""Figures to turn, hover over and toggle, inside a page that fetches nothing: Plotly's only door.

A figure is a fragment of HTML with its own numbers; the page has the library once (`library`), whole. Where no script
runs, and on paper, the page shows the figure's picture instead.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from adaptlab import stats
from adaptlab.report.figures import looks
from adaptlab.report.landscape.barriers import excess
from adaptlab.report.landscape.data import Lines, Spectrum, Surface
from adaptlab.report.landscape.scale import Scale, ceiling, heights, scale_of
from adaptlab.report.words import plain

__all__ = ["interactive_lines", "interactive_spectra", "interactive_surface", "library"]

# The marker of each look on the screen; Plotly has names of its own.
_SYMBOLS = {
    **{"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond"},
    **{"v": "triangle-down", "P": "cross", "X": "x", "*": "star"},
}
_CONFIG = {
    **{"displaylogo": False, "responsive": True, "plotlyServerURL": ""},
    "modeBarButtonsToRemove": ["sendDataToCloud", "sendChartToCloud"],  # under the names of versions 6 and 7
}


def library() -> str:
    """The source of Plotly's JavaScript library, for one script element of a page."""
    return get_plotlyjs()


def interactive_surface(surface: Surface, name: str) -> str:
    """Return a surface to turn, with a menu of its domains; hovering says where one is and what the loss is there.

    Args:
      surface: what is drawn.
      name: the identifier of its element in the page.
    """
    figure, counts = go.Figure(), []
    for i, (domain, loss_YX) in enumerate(surface.loss.items()):
        traces = _surface_traces(surface, domain, loss_YX, visible=i == 0)
        figure.add_traces(traces)
        counts.append(len(traces))
    axis = {"title": {"font": {"size": 11}}, "tickfont": {"size": 9}}
    figure.update_layout(
        scene={
            "xaxis": axis | {"title": {"text": plain(surface.x_label), "font": {"size": 10}}},
            "yaxis": axis | {"title": {"text": plain(surface.y_label), "font": {"size": 10}}},
            "zaxis": axis | {"title": {"text": "loss (nats per token)", "font": {"size": 10}}},
            "aspectratio": {"x": 1.1, "y": 1.1, "z": 0.7},
        },
        height=560,
    )
    return _html(figure, name, _menu([*surface.loss], counts))


def _surface_traces(surface: Surface, domain: str, loss_YX: np.ndarray, visible: bool) -> list[Any]:
    top, scale = ceiling(loss_YX), scale_of(loss_YX)
    shown = np.where(np.isfinite(loss_YX), np.minimum(loss_YX, top), np.nan)
    where = "x %{x:.3g}<br>y %{y:.3g}<br>loss %{customdata:.4g}<extra>" + plain(domain) + "</extra>"
    sheet = go.Surface(
        x=surface.x_X,
        y=surface.y_Y,
        z=shown,
        customdata=loss_YX,
        surfacecolor=scale.of(np.where(np.isfinite(shown), shown, np.nan)),
        colorscale="Viridis",
        colorbar=_bar(Scale(scale.least, float(np.sqrt(max(top - scale.least, 0.0))))),
        contours={"z": {"show": True, "project": {"z": True}, "usecolormap": True}},
        hovertemplate=where,
        visible=visible,
        showlegend=False,
    )
    lines = [_path(surface, loss_YX, look, top, visible) for look in looks([*surface.paths])]
    if not surface.marks:
        return [sheet, *lines]
    xy_K2 = np.array([*surface.marks.values()])
    points = go.Scatter3d(
        x=xy_K2[:, 0],
        y=xy_K2[:, 1],
        z=np.minimum(heights(surface, loss_YX, xy_K2), top),
        mode="markers+text",
        text=[plain(label) for label in surface.marks],
        marker={"size": 4, "color": "white", "line": {"color": "black", "width": 2}},
        visible=visible,
        showlegend=False,
        hovertemplate="%{text}<br>x %{x:.3g}, y %{y:.3g}<extra></extra>",
    )
    return [sheet, *lines, points]


def _bar(scale: Scale) -> dict[str, Any]:
    ticks = scale.levels[::3]
    text = [f"{loss:.3g}" for loss in scale.loss(ticks)]
    return {"title": {"text": "nats/token", "font": {"size": 10}}, "tickvals": ticks, "ticktext": text, "len": 0.7}


def _path(surface: Surface, loss_YX: np.ndarray, look: Any, top: float, visible: bool) -> Any:
    xy_K2 = surface.paths[look.label]
    return go.Scatter3d(
        x=xy_K2[:, 0],
        y=xy_K2[:, 1],
        z=np.minimum(heights(surface, loss_YX, xy_K2), top),
        mode="lines+markers",
        name=f"trajectory of {plain(look.label)}",
        line={"color": look.colour, "width": 6},
        marker={"size": 3, "color": look.colour},
        visible=visible,
        hovertemplate=f"{plain(look.label)}, x %{{x:.3g}}, y %{{y:.3g}}<extra></extra>",
    )


def interactive_lines(lines: Sequence[Lines], name: str, x_label: str, confidence: float) -> str:
    """Return the loss above the chord between two models, with a menu of domains; the legend toggles lines."""
    figure, counts = go.Figure(), []
    named = looks([line.label for line in lines])
    domains = list(dict.fromkeys(domain for line in lines for domain in line.loss))
    for i, domain in enumerate(domains):
        traces: list[Any] = []
        for look, line in zip(named, lines, strict=True):
            if domain in line.loss:
                traces += _line_traces(look, line.t_T, excess(line.loss[domain], line.t_T), confidence, i == 0)
        figure.add_traces(traces)
        counts.append(len(traces))
    figure.update_layout(
        xaxis={"title": {"text": x_label}},
        yaxis={"title": {"text": "loss above the chord (nats per token)"}, "exponentformat": "power"},
        height=430,
    )
    return _html(figure, name, _menu(domains, counts))


def _line_traces(look: Any, t_T: np.ndarray, values_ST: np.ndarray, confidence: float, visible: bool) -> list[Any]:
    found = [stats.interval(values_S, confidence) for values_S in values_ST.T]
    text = [f"{i.mean:.4f} [{i.low:.4f}, {i.high:.4f}], n = {i.n}" for i in found]
    mean = go.Scatter(
        x=t_T,
        y=[i.mean for i in found],
        mode="lines+markers",
        name=plain(look.label),
        legendgroup=look.label,
        line={"color": look.colour},
        marker={"symbol": _SYMBOLS[look.marker], "size": 7},
        text=text,
        hovertemplate="%{x:.3g}: %{text}",
        visible=visible,
    )
    band = go.Scatter(
        x=np.concatenate([t_T, t_T[::-1]]),
        y=[i.high for i in found] + [i.low for i in found][::-1],
        fill="toself",
        fillcolor=look.colour,
        opacity=0.15,
        line={"width": 0},
        legendgroup=look.label,
        showlegend=False,
        hoverinfo="skip",
        visible=visible,
    )
    return [mean, band] if len(values_ST) > 1 else [mean]


def interactive_spectra(spectra: Sequence[Spectrum], name: str, x_label: str) -> str:
    """Return the densities on one logarithmic axis; the legend toggles models, hovering reads nodes and eigenvalues."""
    figure = go.Figure()
    for look, s in zip(looks([one.label for one in spectra]), spectra, strict=True):
        group = {"legendgroup": s.label}
        line = {"color": look.colour}
        figure.add_scatter(x=s.value_G, y=s.density_G, name=plain(s.label), mode="lines", line=line, **group)
        marks = {"mode": "markers", "showlegend": False, **group}
        figure.add_scatter(
            x=s.node_SM.ravel(),
            y=s.weight_SM.ravel(),
            marker={"symbol": "line-ns-open", "color": look.colour, "size": 9},
            hovertemplate="Ritz value %{x:.4g}, weight %{y:.3g}<extra></extra>",
            **marks,
        )
        figure.add_scatter(
            x=s.eigenvalue_E,
            y=np.full(len(s.eigenvalue_E), float(np.max(s.density_G)) * 1e-2),
            error_x={"type": "data", "array": s.bound_E, "color": look.colour},
            marker={"symbol": _SYMBOLS[look.marker], "color": look.colour, "size": 8},
            hovertemplate="eigenvalue %{x:.5g}<extra></extra>",
            **marks,
        )
    figure.update_layout(
        xaxis={"title": {"text": x_label}},
        yaxis={"title": {"text": "density; weight of a Ritz value"}, "type": "log", "exponentformat": "power"},
        height=430,
    )
    return _html(figure, name, [])


def _menu(domains: Sequence[str], counts: Sequence[int]) -> list[dict[str, Any]]:
    """A menu that shows the traces of one domain and hides the others'."""
    if len(domains) < 2:
        return []
    owner = [i for i, count in enumerate(counts) for _ in range(count)]
    buttons = [
        {"label": plain(domain), "method": "restyle", "args": ["visible", [o == i for o in owner]]}
        for i, domain in enumerate(domains)
    ]
    return [{"buttons": buttons, "direction": "down", "x": 0, "xanchor": "left", "y": 1.12, "yanchor": "top"}]


def _html(figure: Any, name: str, menus: list[dict[str, Any]]) -> str:
    figure.update_layout(
        template="plotly_white",
        updatemenus=menus,
        margin={"l": 10, "r": 10, "t": 50, "b": 10},
        font={"size": 11},
        legend={"orientation": "h", "y": -0.15},
    )
    return figure.to_html(include_plotlyjs=False, full_html=False, div_id=name, config=_CONFIG)
