"""What a method can do at any of its learning rates: the frontier of gain and forgetting, and runs of equal gain.

A method compared at the rate with its own largest gain is compared where it has been driven hardest, which hides that
another rate would have gained as much as the others and forgotten little. The frontier has all rates:

    F(g) = min over rates r of the mean over seeds of F(r, s, g)

where F(r, s, g) is what the run of rate r and seed s has forgotten where it first reaches the gain g; see
`trajectory.crossing`. A rate counts only if all its seeds reach g.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adaptlab.report.outcomes import Rates, best_gain, final_gain
from adaptlab.report.quantities import OfArms, Reading
from adaptlab.report.trajectory import MEAN, crossing

__all__ = ["Point", "attained", "frontier", "frontier_forgetting", "measured", "rate_at_gain"]

FRACTIONS = (0.25, 0.5, 0.75, 0.9)


class Point(NamedTuple):
    """A point of the frontier.

    Attributes:
      rate: the learning rate that forgets least there.
      values: what its runs have forgotten, by seed, in nats/token.
    """

    rate: float
    values: dict[int, float]


def attained(rates: Rates) -> float:
    """The largest gain that some learning rate reaches with all its seeds, at any step."""
    return max(min(best_gain(run.path) for run in seeds.values()) for seeds in rates.values())


def frontier(rates: Rates, gain: float, domain: str = MEAN) -> Point | None:
    """Return a method's point of the frontier at a gain, or None if no learning rate reaches it with all its seeds.

    Args:
      rates: its outcomes.
      gain: g, in nats/token.
      domain: an upstream domain, or "mean".
    """
    points = []
    for rate, seeds in sorted(rates.items()):
        values = {seed: crossing(run.path, gain).change[domain] for seed, run in seeds.items()}
        if all(math.isfinite(value) for value in values.values()):
            points.append(Point(rate, values))
    return min(points, key=lambda point: float(np.mean([*point.values.values()])), default=None)


def frontier_forgetting(fractions: Sequence[float] = FRACTIONS, domain: str = MEAN) -> OfArms:
    """The forgetting on the frontier, averaged over gains that all compared arms attain.

        mean over f in `fractions` of F(f * min over arms of the largest gain it attains)

    Args:
      fractions: of that gain, in (0, 1].
      domain: an upstream domain, or "mean".
    """
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError(f"fractions must be in (0, 1], got {list(fractions)}.")

    def read(arms: Sequence[Rates]) -> tuple[list[dict[int, Reading]], list[str]]:
        limit = min(map(attained, arms))
        if limit <= 0:
            return [{} for _ in arms], ["an arm gained nothing at any learning rate, so there is no common gain"]
        found, notes = [], []
        for rates in arms:
            points = [frontier(rates, fraction * limit, domain) for fraction in fractions]
            assert all(points)  # some rate attains the limit, and so less
            seeds = set.intersection(*({*point.values} for point in points if point))
            mean = {s: float(np.mean([point.values[s] for point in points if point])) for s in sorted(seeds)}
            found.append({seed: Reading(value) for seed, value in mean.items()})
            method = next(iter(next(iter(rates.values())).values())).run.split("/")[0]
            chosen = ", ".join(f"{p.rate:g} at {f:g}" for p, f in zip(points, fractions, strict=True) if p)
            notes.append(f"{method}: the frontier's learning rate is {chosen} of a gain of {limit:.3g}")
        return found, notes

    of = "" if domain == MEAN else f" of {domain}"
    shares = ", ".join(f"{fraction:g}" for fraction in fractions)
    return OfArms(
        f"least forgetting{of} over all learning rates, mean at {shares} of the largest gain both attain", read
    )


def rate_at_gain(rates: Rates, gain: float) -> float | None:
    """The lowest learning rate whose final gain, averaged over seeds, is at least `gain`; None if there is none."""
    reaches = [r for r, seeds in rates.items() if np.mean([final_gain(run) for run in seeds.values()]) >= gain]
    return min(reaches, default=None)


def measured(name: str, fraction: float = 0.9) -> OfArms:
    """What was measured of updates after training, in runs of about equal gain.

    Each arm is read at its lowest learning rate whose mean final gain is at least g, since higher ones go further for
    no more:

        g = fraction * min over arms of max over rates of the mean final gain

    Args:
      name: of the measurement, averaged over matrices, such as "stable_rank" or "intruders_0.5".
      fraction: in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}.")

    def read(arms: Sequence[Rates]) -> tuple[list[dict[int, Reading]], list[str]]:
        def mean_gain(rates: Rates, rate: float) -> float:
            return float(np.mean([final_gain(run) for run in rates[rate].values()]))

        level = fraction * min(max(mean_gain(rates, rate) for rate in rates) for rates in arms)
        if level <= 0:
            return [{} for _ in arms], ["an arm gained nothing at any learning rate, so there is no common gain"]
        found, notes = [], []
        for rates in arms:
            rate = rate_at_gain(rates, level)
            assert rate is not None  # the best one
            found.append({seed: _update(run.update, name) for seed, run in rates[rate].items()})
            notes.append(f"{next(iter(rates[rate].values())).run.split('/')[0]} is read at learning rate {rate:g}")
        return found, notes

    return OfArms(f"{name.replace('_', ' ')} of the update, at {fraction:g} of the largest final gain both reach", read)


def _update(update: object, name: str) -> Reading:
    values = update if isinstance(update, dict) else {}
    if name not in values:
        return Reading(math.nan, note=f"{name} was not measured; there are {sorted(values)}")
    return Reading(float(values[name]))
