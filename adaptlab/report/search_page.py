"""The page of a search: its table, its front, and what was selected on what."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from adaptlab.report import files, words
from adaptlab.report.figures import Figure, embedded, styled
from adaptlab.report.search_words import ordered, per_million, sentences

__all__ = ["draw_front", "render_search"]

_FRESH, _OTHER = "#0072B2", "#9a9a9a"


@styled
def draw_front(search: Mapping[str, Any]) -> Figure:
    """Return gain against the logarithm of the parameters: finalists with intervals, the rest where it ended."""
    figure = Figure(figsize=(6.6, 4.0), layout="constrained")
    axes, rows = figure.subplots(), search["configurations"]
    axes.set_xscale("log")
    for ended, marker, label in (("complete", "o", "ran to the end"), ("pruned", "x", "ended early")):
        found = [row for row in rows.values() if row["ended"] == ended]
        face = "none" if marker == "o" else _OTHER
        points = [(row["parameters"], row["selection"]["gain"]) for row in found]
        if points:
            style = {"facecolors": face, "edgecolors": _OTHER} if marker == "o" else {"color": _OTHER}
            axes.scatter(*zip(*points, strict=True), marker=marker, s=18, label=f"selected on, {label}", **style)
    finals = {name: row for name, row in rows.items() if row["fresh"]}
    for i, (name, row) in enumerate(finals.items()):
        gain, at = row["fresh"]["gain"], row["parameters"]
        bars = np.nan_to_num([[gain["mean"] - gain["low"]], [gain["high"] - gain["mean"]]])
        look = {"color": _FRESH, "marker": "D", "markersize": 5, "linestyle": "none"}
        axes.errorbar([at], [gain["mean"]], bars, label="fresh seeds and text" if i == 0 else None, **look)
        axes.annotate(name, (at, gain["mean"]), xytext=(5, 4), textcoords="offset points", fontsize=7)
    front = [(rows[name]["parameters"], rows[name]["fresh"]["gain"]["mean"]) for name in search["front"]]
    if front:
        axes.step(*zip(*front, strict=True), where="post", color=_FRESH, linewidth=1.0, alpha=0.6)
    axes.axhline(0, color="#444444", linestyle="--", linewidth=0.9)
    axes.set(xlabel="Parameters that train", ylabel="Gain on the target (nats per token)")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", ncols=3)
    return figure


def render_search(
    search: Mapping[str, Any], figure: Figure, passport: Mapping[str, Any], config_yaml: str, question: str
) -> str:
    """Return the report as one self-contained HTML page; see `adaptlab.report.search.write_search`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": words.number, "spread": words.spread, "count": words.count}
    environment.filters |= {"million": per_million}
    return environment.get_template("search.html.jinja").render(
        search=search,
        rows=ordered(search),
        sentences=sentences(search),
        figure=embedded(figure),
        passport=json.dumps(files.to_json(passport), indent=1, ensure_ascii=False),
        config=config_yaml,
        question=question,
    )
