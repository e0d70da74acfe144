"""What depends on the size of an adaptation: gain, forgetting and the best learning rate, by family and rank.

A family is what methods of several ranks have in common; full fine-tuning is a family of one, without a rank.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from adaptlab import stats
from adaptlab.report.frontier import attained, frontier, rate_at_gain
from adaptlab.report.outcomes import Outcomes, Rates, Runs, best_gain, best_rate, final_gain, outcomes
from adaptlab.report.zone import peak_rate

__all__ = ["by_rank", "intrinsic_dimension"]

_LEVEL = 0.75  # of the largest gain that all methods attain: where forgetting is compared in one number
_EQUAL = 0.9  # of the largest final gain that all methods reach: where updates are compared
_POINTS = 12  # of a drawn frontier
_INTRINSIC = 0.9  # of the gain of full fine-tuning: what an intrinsic dimension reaches


def by_rank(
    curves: pa.Table,
    runs: Runs,
    target: str,
    upstream: Sequence[str],
    confidence: float = 0.95,
    reference: str = "full",
) -> dict[str, Any]:
    """Return `{"level", "equal", "methods", "intrinsic"}`, gains and forgetting in nats/token.

    "methods" has for each its "family", its "rank" and "dim" (None without one), its "parameters", and, as intervals
    over seeds:
      best_gain: the gain at its best learning rate.
      forgetting: on the frontier (`frontier.frontier`) at the gain "level", 75% of the largest that all methods
        without a "dim" attain.
      best_rate: log10 of the learning rate with the largest final gain, interpolated between those tried; "bounds" says
        which seeds' are only bounds.
      frontier: points (gain, rate, forgetting) up to the largest gain the method attains.
      equal_rate: the lowest rate whose mean final gain is at least "equal", 90% of the largest that all methods reach;
        None if all gained nothing.

    "intrinsic" has for each family with dimensions log10 of its intrinsic dimension; see `intrinsic_dimension`.

    Args:
      curves: the held-out measurements.
      runs: what each run is, with "family", and "rank" or "dim" where it has one.
      target: the domain adapted to.
      upstream: the domains that may be forgotten.
      confidence: the level of the intervals.
      reference: the method whose gain an intrinsic dimension is to reach.
    """
    found = outcomes(curves, runs, target, upstream)
    about = {a["method"]: a for a in runs.values()}
    # A small random subspace gains next to nothing: what all methods attain is what all others do.
    compared = [rates for method, rates in found.items() if about[method].get("dim") is None]
    level = _LEVEL * min(map(attained, compared))
    equal = _EQUAL * min(map(_largest_final, compared))
    return {
        "level": level,
        "equal": equal,
        "methods": {
            method: {
                "family": about[method].get("family") or method,
                "rank": about[method].get("rank"),
                "dim": about[method].get("dim"),
                "parameters": about[method].get("dim") or about[method].get("trainable_parameters"),
                "best_gain": _over_seeds([best_gain(run.path) for run in rates[best_rate(rates)].values()], confidence),
                "forgetting": _at(rates, level, confidence),
                "best_rate": _best_rate(rates, confidence),
                "frontier": [_point(rates, gain, confidence) for gain in _gains(attained(rates))],
                "equal_rate": rate_at_gain(rates, equal) if equal > 0 else None,
            }
            for method, rates in found.items()
        },
        "intrinsic": _intrinsic(found, about, confidence, reference),
    }


def intrinsic_dimension(dims: Sequence[int], gains: Sequence[float], goal: float) -> tuple[float, str]:
    """The smallest dimension that gains 90% of `goal` (d₉₀ of arXiv:1804.08838, for a gain in loss).

    It is interpolated linearly in log d at the first crossing.

    Returns:
      The dimension and "", or the end of those tried and the bound that it is: "at most" or "at least".

    >>> intrinsic_dimension([10, 1000], [0.8, 1.0], 1.0)
    (100.0, '')
    >>> intrinsic_dimension([10, 1000], [0.1, 0.2], 1.0)
    (1000.0, 'at least')
    """
    enough = [gain >= _INTRINSIC * goal for gain in gains]
    if not any(enough):
        return float(dims[-1]), "at least"
    i = enough.index(True)
    if i == 0:
        return float(dims[0]), "at most"
    w = (_INTRINSIC * goal - gains[i - 1]) / (gains[i] - gains[i - 1])
    return float(10 ** ((1 - w) * math.log10(dims[i - 1]) + w * math.log10(dims[i]))), ""


def _intrinsic(found: Outcomes, about: Runs, confidence: float, reference: str) -> dict[str, Any]:
    families: dict[str, list[str]] = {}
    for method in sorted(found, key=lambda method: about[method].get("dim") or 0):
        if about[method].get("dim") is not None:
            families.setdefault(about[method]["family"], []).append(method)
    if reference not in found:
        return {}

    def gains(method: str) -> dict[int, float]:
        return {seed: best_gain(run.path) for seed, run in found[method][best_rate(found[method])].items()}

    goal, measured = gains(reference), {}
    for family, methods in families.items():
        tried = [gains(method) for method in methods]
        seeds = [seed for seed in goal if goal[seed] > 0 and all(seed in row for row in tried)]
        dims = [about[method]["dim"] for method in methods]
        reached = {s: intrinsic_dimension(dims, [row[s] for row in tried], goal[s]) for s in seeds}
        logs = [math.log10(dim) for dim, _ in reached.values()] or [math.nan]
        bounds = {seed: bound for seed, (_, bound) in reached.items() if bound}
        measured[family] = {**_over_seeds(logs, confidence), "bounds": bounds}
    return measured


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
