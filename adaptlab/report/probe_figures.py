"""The figure of what runs measured of themselves while training, besides held-out text."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaptlab import stats
from adaptlab.report.captions import Caption
from adaptlab.report.figures import Axes, Figure, Look, grid, legend, looks, name_axes, styled

__all__ = ["NAME", "draw_probes", "probe_captions"]

NAME = "training_probes"
# What is drawn: the metrics of `adaptlab.study.training_probes`, a panel each.
_PANELS = {
    "Distance from the base": r"path/distance/all",
    "Length of the path": r"path/length/all",
    "Straightness of the path": r"path/straightness/all",
    "Cosine of successive steps": r"path/turn/all",
    "Hidden states: similarity": r"hidden/[^/]+/(cka|debiased_cka|minibatch_cka)/\d+",
    "Hidden states: change": r"hidden/[^/]+/relative_change/\d+",
    "Attention: entropy (nats)": r"attention/[^/]+/entropy/\d+/\d+",
    "Attention: distance (tokens)": r"attention/[^/]+/distance/\d+/\d+",
    "Loss without a head (nats)": r"heads/[^/]+/ablation/\d+/\d+",
    "Importance of heads (nats)": r"heads/[^/]+/importance/\d+/\d+",
    "Cosine of gradients": r"interference/cosine/[^/]+/all",
    "Gradient noise scale": r"noise/[^/]+/noise_scale",
    "Largest eigenvalue": r"stability/lambda_max",
}


def draw_probes(curves: pa.Table, summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figure by its name, or nothing where nothing else was measured.

    Args:
      curves: of all runs.
      summary: of the study; each method is drawn at its learning rate there.
    """
    chosen = {
        name: run["method"]
        for name, run in summary["runs"].items()
        if run["method"] in summary["methods"] and run["lr"] == summary["methods"][run["method"]]["lr"]
    }
    panels = {title: found for title, pattern in _PANELS.items() if (found := _read(curves, pattern, chosen))}
    return {NAME: _draw(panels, summary)} if panels else {}


def probe_captions(summary: Mapping[str, Any]) -> dict[str, Caption]:
    """Return the caption of the figure, by its name."""
    several = any(len(row["seeds"]) > 1 for row in summary["methods"].values())
    over = f" Thin lines: seeds; band: {summary['confidence']:.0%} Student interval over them." if several else ""
    text = (
        "What was measured at the same steps as held-out text. Where there is a number for each layer, head or domain, "
        "the line is their plain mean; curves.parquet has each. Hidden states are compared with the base's, the "
        "target's gradient with that of other domains; the noise scale counts targets; the eigenvalue is a Hessian's. "
        "Gradients and Hessians are by what trains: of methods with other parameters their sizes cannot be compared."
        f"{over}"
    )
    return {NAME: Caption("While training", text)}


Series = dict[str, list[dict[int, float]]]
"""`{method: [{step: value} of each run]}`."""


def _read(curves: pa.Table, pattern: str, chosen: Mapping[str, str]) -> Series:
    names = pc.unique(curves["metric"]).to_pylist()  # pyright: ignore[reportAttributeAccessIssue]
    matching = [name for name in names if re.fullmatch(pattern, name)]
    if not matching:
        return {}
    rows = curves.filter(pc.field("metric").isin(matching) & pc.field("run").isin([*chosen]))
    means = rows.group_by(["run", "step"]).aggregate([("value", "mean")]).sort_by("step").to_pylist()
    found: dict[str, dict[int, float]] = {}
    for row in means:
        found.setdefault(row["run"], {})[row["step"]] = row["value_mean"]
    series: Series = {}
    for run, method in chosen.items():
        if run in found:
            series.setdefault(method, []).append(found[run])
    return series


@styled
def _draw(panels: Mapping[str, Series], summary: Mapping[str, Any]) -> Figure:
    methods = [*summary["methods"]]
    named = dict(
        zip(methods, looks([f"{m}, learning rate {summary['methods'][m]['lr']:g}" for m in methods]), strict=True)
    )
    figure, axes = grid([*panels], 1.75, sharex=True)
    for panel, series in zip(axes, panels.values(), strict=True):
        for method, runs in series.items():
            _lines(panel, named[method], runs, summary["confidence"])
    name_axes(figure, "Training step", "")
    legend(figure, axes[0], [*named.values()])
    return figure


def _lines(panel: Axes, look: Look, runs: list[dict[int, float]], confidence: float) -> None:
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    values_SN = np.array([[run[step] for step in steps] for run in runs], np.float64)
    panel.plot(steps, values_SN.mean(0), color=look.colour, marker=look.marker, markevery=max(1, len(steps) // 8))
    if len(runs) > 1:
        for run in runs:
            panel.plot([*run], [*run.values()], color=look.colour, linewidth=0.6, alpha=0.55)
        bands = [stats.interval(values_S, confidence) for values_S in values_SN.T]
        low, high = [b.low for b in bands], [b.high for b in bands]
        panel.fill_between(steps, low, high, color=look.colour, alpha=0.16, linewidth=0)
