"""Figures of what depends on the rank: gain, forgetting, the best learning rate, and the frontier of each method."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptlab.report.figures import Axes, Figure, Look, legend, looks, styled
from adaptlab.report.words import plain

__all__ = ["draw_ranks"]

Method = Mapping[str, Any]


def draw_ranks(summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figures of a summary that has "ranks", from `ranks.by_rank`; otherwise none."""
    if "ranks" not in summary:
        return {}
    methods = summary["ranks"]["methods"]
    figures = {"frontiers": _frontiers(methods)}
    if len({method["rank"] for method in methods.values() if method["rank"] is not None}) > 1:
        ranked = {name: m for name, m in methods.items() if m["dim"] is None}
        families = _families(ranked)
        figures |= {"gain_by_rank": _gain_by_rank(families), "best_rate_by_rank": _best_rate_by_rank(families)}
    if all(method["parameters"] for method in methods.values()) and len(methods) > 1:
        figures["gain_by_parameters"] = _gain_by_parameters(_families(methods), summary["ranks"]["intrinsic"])
    return figures


def _families(methods: Mapping[str, Method]) -> dict[str, list[Method]]:
    found: dict[str, list[Method]] = {}
    for method in methods.values():
        found.setdefault(method["family"], []).append(method)
    return {name: sorted(members, key=lambda m: m["rank"] or m["dim"] or 0) for name, members in found.items()}


@styled
def _gain_by_rank(families: Mapping[str, Sequence[Method]]) -> Figure:
    figure = Figure(figsize=(6.6, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    named = looks([*families])
    for axes, quantity in ((left, "best_gain"), (right, "forgetting")):
        for i, (look, members) in enumerate(zip(named, families.values(), strict=True)):
            _by_rank(axes, look, members, quantity, i - (len(named) - 1) / 2)
        _rank_axis(axes, families)
    left.set_ylabel("Best target gain\n(nats per token)")
    right.set_ylabel("Least mean upstream change\nat equal gain (nats per token)")
    legend(figure, left, named)
    return figure


@styled
def _best_rate_by_rank(families: Mapping[str, Sequence[Method]]) -> Figure:
    figure = Figure(figsize=(6.6, 3.0), layout="constrained")
    axes, named = figure.subplots(), looks([*families])
    for i, (look, members) in enumerate(zip(named, families.values(), strict=True)):
        _by_rank(axes, look, members, "best_rate", i - (len(named) - 1) / 2)
        for method in members:  # an open triangle where some seed's best rate is at the end of those tried
            for bound, marker in (("at least", "^"), ("at most", "v")):
                if bound in method["best_rate"]["bounds"].values() and method["rank"]:
                    at = method["rank"] * _shift(i - (len(named) - 1) / 2), method["best_rate"]["mean"]
                    axes.plot(*at, marker, color=look.colour, markerfacecolor="white", markersize=8, zorder=4)
    low, high = (round(f(x)) for f, x in zip((math.floor, math.ceil), axes.get_ylim(), strict=True))
    axes.set_yticks(range(low, high + 1), [f"1e{i}" for i in range(low, high + 1)])
    _rank_axis(axes, families)
    axes.set_ylabel("Best learning rate")
    legend(figure, axes, named)
    return figure


def _shift(i: float) -> float:
    return 1.05**i  # or equal ranks' bars would hide each other


def _by_rank(axes: Axes, look: Look, members: Sequence[Method], quantity: str, i: float) -> None:
    """Intervals against rank; of a family without ranks a line across, with its band."""
    found = [method[quantity] for method in members]
    if members[0]["rank"] is None:
        axes.axhline(found[0]["mean"], color=look.colour, linestyle="--", linewidth=1.1)
        if math.isfinite(found[0]["low"]):
            axes.axhspan(found[0]["low"], found[0]["high"], color=look.colour, alpha=0.12, linewidth=0)
        return
    bars = np.nan_to_num([[x["mean"] - x["low"], x["high"] - x["mean"]] for x in found]).T
    ranks = [method["rank"] * _shift(i) for method in members]
    axes.errorbar(
        ranks, [x["mean"] for x in found], bars, color=look.colour, marker=look.marker, linewidth=1.2, elinewidth=0.7
    )


@styled
def _gain_by_parameters(families: Mapping[str, Sequence[Method]], intrinsic: Mapping[str, Any]) -> Figure:
    """Best gain against the number of trained parameters, and the intrinsic dimension if subspaces were tried."""
    figure = Figure(figsize=(6.6, 3.2), layout="constrained")
    axes, named = figure.subplots(), looks([*families])
    for look, members in zip(named, families.values(), strict=True):
        found = [method["best_gain"] for method in members]
        bars = np.nan_to_num([[x["mean"] - x["low"], x["high"] - x["mean"]] for x in found]).T
        style = {"color": look.colour, "marker": look.marker, "linewidth": 1.2, "elinewidth": 0.7}
        axes.errorbar([m["parameters"] for m in members], [x["mean"] for x in found], bars, **style)
        if look.label in intrinsic and math.isfinite(mean := intrinsic[look.label]["mean"]):
            low, high = (intrinsic[look.label][end] for end in ("low", "high"))
            axes.axvline(10**mean, color=look.colour, linestyle=":" if intrinsic[look.label]["bounds"] else "-", lw=0.9)
            if math.isfinite(low):
                axes.axvspan(10**low, 10**high, color=look.colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set(xlabel="Trained parameters", ylabel="Best target gain\n(nats per token)")
    legend(figure, axes, named)
    return figure


def _rank_axis(axes: Axes, families: Mapping[str, Sequence[Method]]) -> None:
    ranks = sorted({method["rank"] for members in families.values() for method in members if method["rank"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    axes.set_xlabel("Rank")


@styled
def _frontiers(methods: Mapping[str, Method]) -> Figure:
    figure = Figure(figsize=(6.6, 3.8), layout="constrained")
    axes, named = figure.subplots(), looks([*methods])
    for look, method in zip(named, methods.values(), strict=True):
        points = method["frontier"]
        gain = [0.0, *(point["gain"] for point in points)]
        mean, low, high = ([0.0, *(point["forgetting"][k] for point in points)] for k in ("mean", "low", "high"))
        axes.plot(gain, mean, color=look.colour, marker=look.marker, markersize=3.5, linewidth=1.2)
        axes.fill_between(gain, low, high, color=look.colour, alpha=0.12, linewidth=0)
    axes.axhline(0, color="#444444", linestyle="--", linewidth=0.9)
    tops = [point["forgetting"]["mean"] for method in methods.values() for point in method["frontier"]]
    span = max(tops, default=0.1) - min([0.0, *tops]) or 0.1
    axes.set_ylim(min([0.0, *tops]) - 0.1 * span, max([0.0, *tops]) + 0.1 * span)
    axes.set(xlabel="Target gain (nats per token)", ylabel="Least mean upstream change\n(nats per token)")
    legend(figure, axes, [look._replace(label=plain(look.label)) for look in named])
    return figure
