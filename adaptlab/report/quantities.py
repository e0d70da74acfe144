"""What can be compared between two arms: one number of each run, or of each seed's runs over all learning rates.

A quantity is a value with its reader. A reader says when it knows only a bound (a zone that the grid of rates cuts
off) and why it has no number at all (nan).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from adaptlab.report.outcomes import Outcome, Rates, best_gain, final_gain
from adaptlab.report.trajectory import MEAN, best, crossing
from adaptlab.report.zone import peak_rate, usable_zone

__all__ = [
    "OfArms",
    "OfRun",
    "OfSeed",
    "Quantity",
    "Reading",
    "best_learning_rate",
    "early_forgetting",
    "forgetting",
    "forgetting_at_gain",
    "gain",
    "updates_to_gain",
    "zone_width",
]


class Reading(NamedTuple):
    """One number.

    Attributes:
      value: the number; nan if there is none.
      bound: "" if it is exact; "at least" or "at most" if it is a bound of the true one, "unknown" if it may lie
        on either side.
      note: why it is nan or a bound.
    """

    value: float
    bound: str = ""
    note: str = ""


class OfRun(NamedTuple):
    """A quantity of single runs: `read` gets all runs that are compared at once, since they may share a level."""

    says: str
    read: Callable[[Sequence[Outcome]], list[Reading]]


class OfSeed(NamedTuple):
    """A quantity of the runs of one seed at all learning rates, `read({rate: outcome})`."""

    says: str
    read: Callable[[Mapping[float, Outcome]], Reading]


class OfArms(NamedTuple):
    """A quantity of all runs of several arms, which share a level: `read([outcomes of an arm, …])`.

    `read` returns `{seed: reading}` of each arm, and notes.
    """

    says: str
    read: Callable[[Sequence[Rates]], tuple[list[dict[int, Reading]], list[str]]]


Quantity = OfRun | OfSeed | OfArms
At = Literal["final", "best"]


def gain(at: At = "final") -> OfRun:
    """The target gain at the last step, or at the run's best step.

    A run that diverged ends with a gain of at most 0; its best gain is what it reached before.
    """
    _check_at(at)

    def read(run: Outcome) -> Reading:
        if at == "best":
            return Reading(best_gain(run.path))
        return _final(run, run.path.gain_N, "at most")

    return OfRun(f"{at} target gain", lambda runs: [read(run) for run in runs])


def forgetting(domain: str = MEAN) -> OfRun:
    """The change of upstream loss at the last step, whatever was gained; of a diverged run at least 0."""
    says = f"final forgetting{_of(domain)}"
    return OfRun(says, lambda runs: [_final(run, _change(run, domain), "at least") for run in runs])


def forgetting_at_gain(fraction: float = 1.0, domain: str = MEAN) -> OfRun:
    """The change of upstream loss where a run first reaches the gain g.

        g = fraction * min over the compared runs of their best gain

    so that no run is extrapolated; see `trajectory.crossing`.

    Args:
      fraction: of the largest gain that all compared runs reached, in (0, 1].
      domain: an upstream domain, or "mean".
    """
    _check_fraction(fraction)

    def read(runs: Sequence[Outcome]) -> list[Reading]:
        level = _common_gain(runs, fraction)
        if math.isnan(level):
            return _nothing_gained(runs)
        for run in runs:
            _change(run, domain)  # an unknown domain is named
        return [Reading(crossing(run.path, level).change[domain]) for run in runs]

    return OfRun(f"forgetting{_of(domain)} at {fraction:g} of the largest common gain", read)


def updates_to_gain(fraction: float = 0.9) -> OfRun:
    """The number of updates until a run first reaches `fraction` of the largest gain that all compared runs reached."""
    _check_fraction(fraction)

    def read(runs: Sequence[Outcome]) -> list[Reading]:
        level = _common_gain(runs, fraction)
        if math.isnan(level):
            return _nothing_gained(runs)
        return [Reading(crossing(run.path, level).step) for run in runs]

    return OfRun(f"updates to reach {fraction:g} of the largest common gain", read)


def early_forgetting(fraction: float = 0.1, domain: str = MEAN) -> OfRun:
    """The peak of forgetting in the first part of training: the cliff that a warm-up should avoid.

        max {F(t) : 0 < t <= fraction * T},   T the number of updates

    A run that diverges in that part forgot at least as much as it was last seen to.

    Args:
      fraction: of the updates, in (0, 1]. Measurements must be dense enough to fall into it.
      domain: an upstream domain, or "mean".
    """
    _check_fraction(fraction)

    def read(runs: Sequence[Outcome]) -> list[Reading]:
        until = fraction * max(run.updates for run in runs)
        return [_peak(run, _change(run, domain), until) for run in runs]

    return OfRun(f"peak of forgetting{_of(domain)} in the first {fraction:.0%} of the updates", read)


def zone_width(
    fraction: float = 0.9, at: At = "final", limit: float | None = None, tolerance: float | None = None
) -> OfSeed:
    """The width, in decades, of the zone of usable learning rates; see `zone.usable_zone`.

    Where the zone reaches an end of the rates tried, the width is a lower bound.

    Args:
      fraction: of the seed's largest gain over all rates.
      at: whether gain and forgetting are those of the last step or of each run's best.
      limit: the largest mean forgetting that is usable, in nats per token; None for any.
      tolerance: by how many nats per token a usable gain may be below the largest, in place of `fraction`.
    """
    _check_at(at)
    _check_fraction(fraction)

    def read(row: Mapping[float, Outcome]) -> Reading:
        gains = [_gain_at(run, at) for run in row.values()]
        zone = usable_zone([*row], gains, fraction, [_change_at(run, at) for run in row.values()], limit, tolerance)
        if max(gains, default=0.0) <= 0:
            return Reading(math.nan, note="nothing was gained at any learning rate")
        if not zone.censored:
            return Reading(zone.width)
        ends = " and the ".join(e for e, is_open in zip(("lowest", "highest"), zone[2:], strict=True) if is_open)
        return Reading(zone.width, "at least", f"the zone reaches the {ends} learning rate tried")

    limited = "" if limit is None else f" and at most {limit:g} nats/token forgotten"
    near = f"with {fraction:g} of" if tolerance is None else f"within {tolerance:g} nats/token of"
    return OfSeed(f"width of the zone of learning rates {near} the best {at} gain{limited}", read)


def best_learning_rate(at: At = "final") -> OfSeed:
    """The learning rate with the largest gain, interpolated between those tried; see `zone.peak_rate`."""
    _check_at(at)

    def read(row: Mapping[float, Outcome]) -> Reading:
        rate, bound = peak_rate([*row], [_gain_at(run, at) for run in row.values()])
        if math.isnan(rate):
            return Reading(rate, note="nothing was gained at any learning rate")
        return Reading(rate, bound, "the best learning rate is at the end of those tried" if bound else "")

    return OfSeed(f"learning rate with the best {at} gain", read)


def _final(run: Outcome, values_N: np.ndarray, bound: str) -> Reading:
    if run.diverged:
        return Reading(0.0, bound, "it diverged")
    return Reading(float(values_N[-1]))


def _peak(run: Outcome, change_N: np.ndarray, until: float) -> Reading:
    early_N = (run.path.steps_N > 0) & (run.path.steps_N <= until)
    if not early_N.any() and not run.diverged:
        return Reading(math.nan, note=f"it was not measured in the first {until:g} updates")
    seen_M = change_N[early_N]
    finite_M = seen_M[np.isfinite(seen_M)]
    if len(finite_M) < len(seen_M) or (run.diverged and run.path.steps_N[-1] < until):
        return Reading(float(max(finite_M, default=0.0)), "at least", "it diverged")
    return Reading(float(seen_M.max()))


def _gain_at(run: Outcome, at: At) -> float:
    return best_gain(run.path) if at == "best" else final_gain(run)


def _change_at(run: Outcome, at: At) -> float:
    if at == "best":
        return float(run.path.change[MEAN][best(run.path.gain_N)])
    return math.inf if run.diverged else float(run.path.change[MEAN][-1])


def _common_gain(runs: Sequence[Outcome], fraction: float) -> float:
    level = fraction * min(best_gain(run.path) for run in runs)
    return level if level > 0 else math.nan


def _nothing_gained(runs: Sequence[Outcome]) -> list[Reading]:
    worst = min(runs, key=lambda run: best_gain(run.path)).run
    return [Reading(math.nan, note=f"{worst} gained nothing, so there is no common gain") for _ in runs]


def _change(run: Outcome, domain: str) -> np.ndarray:
    if domain not in run.path.change:
        raise ValueError(f"domain={domain!r} is no upstream domain; there are {sorted(run.path.change)}.")
    return run.path.change[domain]


def _of(domain: str) -> str:
    return "" if domain == MEAN else f" of {domain}"


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}.")


def _check_at(at: str) -> None:
    if at not in ("final", "best"):
        raise ValueError(f"at={at!r} is neither 'final' nor 'best'.")
