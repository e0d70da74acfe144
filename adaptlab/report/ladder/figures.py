"""The figures of a study of a ladder: its laws on logarithmic axes, and what was predicted beside what was measured."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from adaptlab import stats
from adaptlab.report import words
from adaptlab.report.figures import Axes, Figure, Look, grid, legend, looks, name_axes, styled
from adaptlab.report.scaling.figures import Band, Law, draw_scaling

__all__ = ["Line", "draw_ladder"]

Rows = Sequence[Mapping[str, Any]]
Line = Callable[[Mapping[str, np.ndarray]], Band]
"""`{input: (m,)} -> Band`: a fitted law."""

_SCRATCH, _PRETRAINING = "scratch", "pretraining"


def draw_ladder(rows: Rows, pretraining: Law | None, lines: Mapping[str, Line], predictions: Rows) -> dict[str, Figure]:
    """Return the figures by name; those without data are left out.

    Args:
      rows: of points.csv.
      pretraining: the law of pre-training over all rungs.
      lines: of each family, its law of rung and target text, `{"parameters", "unique_tokens"} -> Band`.
      predictions: scored, see `adaptlab.study.ladder.predictions.score`.
    """
    figures: dict[str, Figure] = {}
    if pretraining is not None:
        drawn = draw_scaling(pretraining)
        figures |= {f"pretraining_{name}": drawn[name] for name in ("law", "isoflop", "residuals") if name in drawn}
    adapted = [row for row in rows if row["stage"] != _PRETRAINING and row["target_loss"] is not None]
    if adapted:
        figures["target_text"] = _target_text(adapted, lines)
    if any(row["data_transferred"] for row in adapted):
        figures["transfer"] = _transfer([row for row in adapted if (row["data_transferred"] or 0) > 0])
    if forgot := [row for row in adapted if row["family"] != _SCRATCH]:
        figures["forgetting"] = _forgetting(forgot)
    if predictions:
        figures["predictions"] = _predictions(predictions)
    return figures


@styled
def _target_text(rows: Rows, lines: Mapping[str, Line]) -> Figure:
    """A panel for each rung: loss against the text there is, of each method."""
    rungs, names = _distinct(rows, "rung"), _kinds(rows)
    figure, panels = grid([f"n = {n}" for n in rungs], 2.3, sharey=True)
    shown = dict(zip(names, looks(names), strict=True))
    for axes, n in zip(panels, rungs, strict=True):
        mine = [row for row in rows if row["rung"] == n]
        for name, look in shown.items():
            own = [row for row in mine if _kind(row) == name]
            _means(axes, own, "unique_tokens", "target_loss", look)
            if own and name in lines and len(_distinct(own, "unique_tokens")) > 1:
                x = np.geomspace(min(r["unique_tokens"] for r in own), max(r["unique_tokens"] for r in own), 40)
                at = {"parameters": np.full_like(x, own[0]["parameters"]), "unique_tokens": x}
                if own[0]["rank"] is not None:
                    at["rank"] = np.full_like(x, own[0]["rank"])
                _band(axes, x, lines[name](at), look)
        _log_x(axes, _distinct(rows, "unique_tokens"))
        _log_y(axes, [row["target_loss"] for row in rows])
    legend(figure, panels[0], [*shown.values()])
    name_axes(figure, "Tokens of the target there are", "Target loss (nats per token)")
    return figure


@styled
def _transfer(rows: Rows) -> Figure:
    """What pre-training is worth in data; triangles where it is at least that."""
    rungs, names = _distinct(rows, "rung"), _kinds(rows)
    figure, panels = grid([f"n = {n}" for n in rungs], 2.3, sharey=True)
    shown = looks(names)
    for axes, n in zip(panels, rungs, strict=True):
        for look in shown:
            own = [row for row in rows if row["rung"] == n and _kind(row) == look.label]
            for bound, marker, face in (("", look.marker, look.colour), ("at least", "^", "white")):
                some = [row for row in own if (row["effective_data_bound"] or "") == bound]
                x, y = ([row[key] for row in some] for key in ("unique_tokens", "data_transferred"))
                axes.plot(x, y, marker, color=look.colour, markerfacecolor=face, alpha=0.7)
        _log_x(axes, _distinct(rows, "unique_tokens"))
        axes.set_yscale("log")
        axes.tick_params(axis="y", which="minor", labelleft=False)
    legend(figure, panels[0], shown)
    name_axes(figure, "Tokens fine-tuned on", "Effective data transferred (tokens)")
    return figure


@styled
def _forgetting(rows: Rows) -> Figure:
    """A panel for each rung: upstream change against the weights that are tuned, by amount of text."""
    rungs, amounts = _distinct(rows, "rung"), _distinct(rows, "unique_tokens")
    figure, panels = grid([f"n = {n}" for n in rungs], 2.3, sharey=True)
    shown = looks([f"{amount:,} tokens" for amount in amounts])
    for axes, n in zip(panels, rungs, strict=True):
        for amount, look in zip(amounts, shown, strict=True):
            own = [row for row in rows if row["rung"] == n and row["unique_tokens"] == amount]
            _means(axes, own, "trainable_parameters", "forgetting", look, line=True)
        axes.set_xscale("log")
        axes.tick_params(axis="x", which="minor", labelbottom=False)
        axes.axhline(0, color="#444444", linewidth=0.8)
    legend(figure, panels[0], shown)
    name_axes(figure, "Parameters that train", "Change of upstream loss (nats per token)")
    return figure


@styled
def _predictions(rows: Rows) -> Figure:
    """A line for each prediction: its interval, its value, and the runs that came after."""
    figure = Figure(figsize=(6.6, 0.9 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(reversed(rows)):
        axes.plot([row["low"], row["high"]], [i, i], color="#0072B2", linewidth=4, alpha=0.35, solid_capstyle="butt")
        axes.plot(row["value"], i, "|", color="#0072B2", markersize=10)
        axes.plot([*row["runs"].values()], [i] * len(row["runs"]), "o", color="#D55E00", markersize=4, alpha=0.8)
    axes.set_yticks(range(len(rows)), [row["cell"].replace("_", " ") for row in reversed(rows)])
    axes.set_xlabel("Loss (nats per token)")
    seen = [Look("predicted, with its interval", "#0072B2", "|"), Look("measured after", "#D55E00", "o")]
    legend(figure, axes, seen)
    return figure


def _log_x(axes: Axes, amounts: Sequence[float]) -> None:
    """A logarithmic axis with a tick at each amount, so that a short range has labels that can be read."""
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(amounts, [words.count(amount) for amount in amounts])


def _log_y(axes: Axes, losses: Sequence[float]) -> None:
    axes.set_yscale("log")
    low, high = min(losses), max(losses)
    axes.set_ylim(0.97 * low, 1.03 * high)
    ticks = np.unique(np.round(np.geomspace(low, high, 5), 2))
    axes.set_yticks(ticks, [words.number(tick, 2) for tick in ticks])
    axes.minorticks_off()


def _kind(row: Mapping[str, Any]) -> str:
    return row["family"] if row["rank"] is None else f"{row['family']} r{row['rank']}"


def _kinds(rows: Rows) -> list[str]:
    return list(dict.fromkeys(_kind(row) for row in rows))


def _distinct(rows: Rows, key: str) -> list[Any]:
    return sorted({row[key] for row in rows})


def _means(axes: Axes, rows: Rows, x: str, y: str, look: Look, line: bool = False) -> None:
    """The mean over seeds at each x, with Student's interval."""
    at = _distinct(rows, x)
    found = [stats.interval(_values(rows, x, value, y)) for value in at]
    mean = np.array([one.mean for one in found])
    if line:
        axes.plot(at, mean, color=look.colour, linewidth=1.0)
    reach = np.nan_to_num([one.high - one.mean for one in found])
    axes.errorbar(at, mean, reach, fmt=look.marker, color=look.colour, markersize=4, elinewidth=0.8, linestyle="none")


def _values(rows: Rows, x: str, value: Any, y: str) -> np.ndarray:
    found: Iterable[Any] = (row[y] for row in rows if row[x] == value and row[y] is not None)
    return np.array([*found], np.float64)


def _band(axes: Axes, x: np.ndarray, band: Band, look: Look) -> None:
    axes.plot(x, band.value, color=look.colour, linewidth=1.0)
    axes.fill_between(x, band.low, band.high, color=look.colour, alpha=0.12, linewidth=0)
