"""What depends on the rank of an adaptation: gain, forgetting and the best learning rate, by family and rank.

A family is what methods of several ranks have in common; full fine-tuning is a family of one, without a rank.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from adaptlab import stats
from adaptlab.report.frontier import attained, frontier, rate_at_gain
from adaptlab.report.outcomes import Rates, Runs, best_gain, best_rate, final_gain, outcomes
from adaptlab.report.zone import peak_rate

__all__ = ["by_rank"]

_LEVEL = 0.75  # of the largest gain that all methods attain: where forgetting is compared in one number
_EQUAL = 0.9  # of the largest final gain that all methods reach: where updates are compared
_POINTS = 12  # of a drawn frontier


def by_rank(
    curves: pa.Table, runs: Runs, target: str, upstream: Sequence[str], confidence: float = 0.95
) -> dict[str, Any]:
    """Return `{"level", "equal", "methods"}`, in nats/token, with an entry of "methods" for each.

    The entry has its "family" and "rank" (None without one), and, as intervals over seeds:
      best_gain: the gain at its best learning rate.
      forgetting: on the frontier (`frontier.frontier`) at the gain "level", 75% of the largest that all methods attain.
      best_rate: log10 of the learning rate with the largest final gain, interpolated between those tried; "bounds" says
        which seeds' are only bounds.
      frontier: points (gain, rate, forgetting) up to the largest gain the method attains.
      equal_rate: the lowest rate whose mean final gain is at least "equal", 90% of the largest that all methods reach;
        None if all gained nothing.

    Args:
      curves: the held-out measurements.
      runs: what each run is, with "family" and "rank".
      target: the domain adapted to.
      upstream: the domains that may be forgotten.
      confidence: the level of the intervals.
    """
    found = outcomes(curves, runs, target, upstream)
    level = _LEVEL * min(map(attained, found.values()))
    equal = _EQUAL * min(_largest_final(rates) for rates in found.values())
    named = {a["method"]: (a.get("family") or a["method"], a.get("rank")) for a in runs.values()}
    return {
        "level": level,
        "equal": equal,
        "methods": {
            method: {
                "family": named[method][0],
                "rank": named[method][1],
                "best_gain": _over_seeds([best_gain(run.path) for run in rates[best_rate(rates)].values()], confidence),
                "forgetting": _at(rates, level, confidence),
                "best_rate": _best_rate(rates, confidence),
                "frontier": [_point(rates, gain, confidence) for gain in _gains(attained(rates))],
                "equal_rate": rate_at_gain(rates, equal) if equal > 0 else None,
            }
            for method, rates in found.items()
        },
    }


def _over_seeds(values: Sequence[float], confidence: float) -> dict[str, Any]:
    return stats.interval(values, confidence)._asdict()


def _largest_final(rates: Rates) -> float:
    return max(float(np.mean([final_gain(run) for run in seeds.values()])) for seeds in rates.values())


def _gains(limit: float) -> list[float]:
    return [limit * (i + 1) / _POINTS for i in range(_POINTS)] if limit > 0 else []


def _at(rates: Rates, gain: float, confidence: float) -> dict[str, Any]:
    point = frontier(rates, gain) if gain > 0 else None
    return _over_seeds([*point.values.values()] if point else [math.nan], confidence)


def _point(rates: Rates, gain: float, confidence: float) -> dict[str, Any]:
    point = frontier(rates, gain * (1 - 1e-9))  # the last of them is attained exactly
    assert point is not None
    return {"gain": gain, "rate": point.rate, "forgetting": _over_seeds([*point.values.values()], confidence)}


def _best_rate(rates: Rates, confidence: float) -> dict[str, Any]:
    seeds = sorted(set.intersection(*({*row} for row in rates.values())))
    peaks = {s: peak_rate([*rates], [final_gain(row[s]) for row in rates.values()]) for s in seeds}
    known: Mapping[int, float] = {s: math.log10(rate) for s, (rate, _) in peaks.items() if math.isfinite(rate)}
    bounds = {s: bound for s, (_, bound) in peaks.items() if bound}
    return {**_over_seeds([*known.values()] or [math.nan], confidence), "bounds": bounds}
