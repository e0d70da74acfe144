"""The page of a study of numerics: distances against steps, and the table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from adaptlab.report import files, words
from adaptlab.report.figures import Axes, Figure, embedded, legend, looks, styled
from adaptlab.report.numerics_words import apart_from, scientific, with_interval

__all__ = ["draw_numerics", "render_numerics"]

_SEEDS = "#444444"


def draw_numerics(summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the distance of updates and of losses against the step: the geometric mean over seeds, logarithmic."""
    return {kind: _distances(summary, kind) for kind in ("update", "loss")}


@styled
def _distances(summary: Mapping[str, Any], kind: str) -> Figure:
    figure = Figure(figsize=(6.6, 4.2), layout="constrained")
    axes, named = figure.subplots(), looks(list(summary["arms"]))
    shown = []
    for look, arm in zip(named, summary["arms"].values(), strict=True):
        steps, low, middle, high = _over_seeds(arm["paths"][kind])
        if not steps:
            continue
        shown.append(look)
        axes.plot(steps, middle, color=look.colour, marker=look.marker, markersize=3)
        axes.fill_between(steps, low, high, color=look.colour, alpha=0.15, linewidth=0)
    if kind == "update":
        _yardstick(axes, summary)
    axes.set_yscale("log")
    axes.set(xlabel="Update", ylabel=f"Relative distance of the {'update' if kind == 'update' else 'held-out loss'}")
    if shown:
        legend(figure, axes, shown)
    return figure


def _over_seeds(paths: list[Mapping[Any, float]]) -> tuple[list[int], Any, Any, Any]:
    """Steps at which every seed is apart; the least, the geometric mean and the largest distance there."""
    at = [{int(step): d for step, d in path.items() if d > 0} for path in paths]
    steps = sorted(set.intersection(*map(set, at)))
    if not steps:
        return [], [], [], []
    distance_SN = np.array([[path[step] for step in steps] for path in at])
    return steps, distance_SN.min(0), np.exp(np.log(distance_SN).mean(0)), distance_SN.max(0)


def _yardstick(axes: Axes, summary: Mapping[str, Any]) -> None:
    found = {int(step): np.mean(d) for step, d in summary["between_seeds"].items() if d and np.all(np.isfinite(d))}
    if found:
        axes.plot(*zip(*sorted(found.items()), strict=True), color=_SEEDS, linestyle="--")
        axes.annotate(
            "another seed",
            (max(found), found[max(found)]),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            fontsize=7,
        )


def render_numerics(
    summary: Mapping[str, Any],
    figures: Mapping[str, Figure],
    passport: Mapping[str, Any],
    config_yaml: str,
    question: str,
) -> str:
    """Return the report as one self-contained HTML page; see `adaptlab.report.numerics.write_numerics`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"scientific": scientific, "interval": with_interval, "apart": apart_from}
    environment.filters |= {"rate": lambda x: with_interval(x, lambda v: words.number(v, 3, sign=True))}
    images = {name: embedded(figure) for name, figure in figures.items()}
    return environment.get_template("numerics.html.jinja").render(
        summary=summary,
        same=[name for name, arm in summary["arms"].items() if arm["same_bits"]],
        figures=images,
        passport=json.dumps(files.to_json(passport), indent=1, ensure_ascii=False),
        config=config_yaml,
        question=question,
    )
