"""The numbers of a study of loss landscapes: basins, sharpness and what they have to do with forgetting.

Every run has its own target, so what stands for it in curves and claims is called `TARGET`; the run's attribute
"target" has its name. Losses are in nats per token, intervals Student's over seeds.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from adaptlab import stats
from adaptlab.report.curves import from_journals
from adaptlab.report.landscape.data import Lines, Spectrum, Surface
from adaptlab.report.outcomes import Outcome, Runs, final_gain, outcomes
from adaptlab.report.sink import read_journal
from adaptlab.report.trajectory import MEAN

__all__ = ["TARGET", "Landscape", "landscape_curves", "lines_by_seed", "summarise_landscape", "with_lines"]

TARGET = "target"

_NUMBERS = (
    *("distance", "relative_distance", "barrier", "barrier_target", "barrier_upstream", "rise", "hump"),
    *("curvature_update", "curvature_random", "forecast", "random_change"),
)
_TWIN = ("twin_barrier_target", "twin_barrier_upstream", "twin_rise_target", "twin_rise_upstream", "twin_distance")


class Landscape(NamedTuple):
    """What a study of loss landscapes found.

    Attributes:
      summary: from `summarise_landscape`.
      lines: from the base to the tuned models, each method at its own rate.
      twins: between models that differ in their seed only.
      surfaces: by plane.
      spectra: of the base first.
    """

    summary: Mapping[str, Any]
    lines: Sequence[Lines]
    twins: Sequence[Lines]
    surfaces: Mapping[str, Surface]
    spectra: Sequence[Spectrum]


def landscape_curves(journals: Mapping[str, str | os.PathLike], targets: Mapping[str, str]) -> pa.Table:
    """Return the curves of runs with several targets: each run's own is called `TARGET`.

    Args:
      journals: `{run: its journal}`.
      targets: `{run: the domain it was adapted to}`.
    """

    def renamed(run: str) -> list[Any]:
        own, common = f"held_out/{targets[run]}/", f"held_out/{TARGET}/"
        return [
            row._replace(metrics={name.replace(own, common): value for name, value in row.metrics.items()})
            for row in read_journal(journals[run])
        ]

    return from_journals({run: renamed(run) for run in journals})


def with_lines(
    results: Runs, lines: Mapping[str, Mapping[str, Any]], twins: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return runs with what was measured of their lines as the attribute `update`; see `report.outcomes`.

    The number `barrier` is the larger one of `barrier_target` and `barrier_upstream`, `rise` of the rises.

    Args:
      results: the runs; only those with a line are returned.
      lines: see `adaptlab.study.straight_lines`.
      twins: as `lines`, of those with a twin.
    """
    found = {}
    for run, line in lines.items():
        numbers = dict(line["numbers"])
        if "barrier_target" in numbers:
            for name in ("barrier", "rise"):
                numbers[name] = max(numbers[f"{name}_target"], numbers[f"{name}_upstream"])
        found[run] = {**results[run], "update": numbers | (twins[run]["numbers"] if run in twins else {})}
    return found


def summarise_landscape(
    curves: pa.Table,
    runs: Runs,
    upstream: Sequence[str],
    spectra: Sequence[Spectrum],
    tolerance: float,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Return the summary: rows by method and learning rate, pairs of seeds by method, eigenvalues by model.

    Args:
      curves: from `landscape_curves`.
      runs: from `with_lines`, with the attributes "arm", "place" and "target" besides those of every study.
      upstream: the domains that may be forgotten.
      spectra: of the study.
      tolerance: the highest barrier that counts as none, in nats per token.
      confidence: the level of the intervals.
    """
    found = outcomes(curves, runs, TARGET, upstream)
    rows = [
        _row(method, rate, [*seeds.values()], runs, tolerance, confidence)
        for method, rates in found.items()
        for rate, seeds in rates.items()
    ]
    every = [o for rates in found.values() for seeds in rates.values() for o in seeds.values()]
    lost = [o.run for o in every if o.diverged]
    return {
        "targets": {runs[o.run]["place"]: runs[o.run]["target"] for o in every},
        "upstream": [*upstream],
        "tolerance": tolerance,
        "confidence": confidence,
        "rows": rows,
        "pairs": {method: pair for method, rates in found.items() if (pair := _pair(rates.values(), confidence))},
        "spectra": {s.label: _spectrum(s, confidence) for s in spectra},
        "runs": {o.run: _run(o, runs[o.run]) for o in every},
        "warnings": [f"{len(lost)} runs diverged: {', '.join(lost)}."] if lost else [],
    }


def _row(
    method: str, rate: float, some: Sequence[Outcome], runs: Runs, tolerance: float, confidence: float
) -> dict[str, Any]:
    about = runs[some[0].run]
    barriers = [o.update["barrier"] for o in some if "barrier" in o.update]

    def over(values: Iterable[float]) -> dict[str, Any]:
        return stats.interval([*values], confidence)._asdict()

    return {
        "method": method,
        "arm": about["arm"],
        "place": about["place"],
        "lr": rate,
        "n": len(some),
        "diverged": sum(o.diverged for o in some),
        "gain": over(final_gain(o) for o in some),
        "forgetting": over(o.path.change[MEAN][-1] for o in some),
        "in_basin": sum(barrier <= tolerance for barrier in barriers),
        **{name: over(o.update.get(name, np.nan) for o in some) for name in _NUMBERS},
    }


def _pair(rates: Iterable[Mapping[int, Outcome]], confidence: float) -> dict[str, Any]:
    """What was measured between runs and their twins; empty if no run has one."""
    some = [o for seeds in rates for o in seeds.values() if "twin_barrier_target" in o.update]
    return {name: stats.interval([o.update[name] for o in some], confidence)._asdict() for name in _TWIN if some}


def _run(outcome: Outcome, about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: about[name] for name in ("method", "arm", "place", "target", "lr", "seed")},
        "gain": final_gain(outcome),
        "forgetting": float(outcome.path.change[MEAN][-1]),
        "diverged": outcome.diverged,
        **outcome.update,
    }


def _spectrum(one: Spectrum, confidence: float) -> dict[str, Any]:
    largest = float(one.eigenvalue_E[0])
    means_S = np.sum(one.weight_SM * one.node_SM, axis=1)
    negative_S = np.sum(one.weight_SM * (one.node_SM < -1e-3 * largest), axis=1)
    return {
        "eigenvalues": one.eigenvalue_E,
        "bounds": one.bound_E,
        "trace": stats.interval(one.parameters * means_S, confidence)._asdict(),
        "negative_share": stats.interval(negative_S, confidence)._asdict(),
        "parameters": one.parameters,
    }


def lines_by_seed(
    records: Mapping[str, Mapping[str, Any]], runs: Runs, rates: Mapping[str, float] | None = None
) -> list[Lines]:
    """Return the lines of each method at one learning rate as arrays over seeds; a run without a line is left out.

    Args:
      records: `{run: {"t", "loss", …}}`.
      runs: what each run is; its own target's losses are called `TARGET`.
      rates: `{method: learning rate}`; None takes every run there is.
    """
    groups: dict[tuple[str, float], list[str]] = {}
    for run, record in records.items():
        key = runs[run]["method"], runs[run]["lr"]
        if record["t"] and (rates is None or rates.get(key[0]) == key[1]):
            groups.setdefault(key, []).append(run)
    found = []
    for (method, rate), names in groups.items():
        each = [_renamed(records[run]["loss"], runs[run]["target"]) for run in names]
        loss = {domain: np.array([one[domain] for one in each], np.float64) for domain in each[0]}
        t_T = np.array(records[names[0]]["t"], np.float64)
        found.append(Lines(f"{method}, learning rate {rate:g}", t_T, loss))
    return found


def _renamed(loss: Mapping[str, Any], target: str) -> dict[str, Any]:
    return {TARGET if domain == target else domain: values for domain, values in loss.items()}
