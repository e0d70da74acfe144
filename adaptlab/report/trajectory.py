"""The path of one run through (target gain, upstream change), and its values at a given gain."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from adaptlab.report import curves as cv

__all__ = ["MEAN", "Crossing", "Trajectory", "best", "crossing", "make_trajectory", "trajectory"]

MEAN = "mean"  # the name under which the mean over upstream domains stands beside them


class Trajectory(NamedTuple):
    """What one run gained and what it forgot, at each step it was measured; losses in nats/token.

    Attributes:
      steps_N: the steps; the first is 0, the base itself.
      gain_N: target loss of the base minus target loss: positive is better.
      loss: `{domain: loss_N}`, of the target and every upstream domain.
      change: `{domain: loss_N - loss of the base}` of every upstream domain, and their unweighted mean under
        `MEAN`: positive is forgetting.
    """

    steps_N: np.ndarray
    gain_N: np.ndarray
    loss: dict[str, np.ndarray]
    change: dict[str, np.ndarray]


class Crossing(NamedTuple):
    """Where a run first reaches a gain; nan if it never does."""

    step: float
    change: dict[str, float]


def make_trajectory(steps_N: np.ndarray, loss: Mapping[str, np.ndarray], target: str) -> Trajectory:
    """Return the trajectory of losses `{domain: loss_N}` measured at `steps_N`, of which the first is 0."""
    change = {domain: loss_N - loss_N[0] for domain, loss_N in loss.items() if domain != target}
    change[MEAN] = np.mean(list(change.values()), axis=0)
    return Trajectory(steps_N, loss[target][0] - loss[target], dict(loss), change)


def trajectory(curves: pa.Table, run: str, target: str, upstream: Sequence[str]) -> Trajectory:
    """Read the trajectory of a run from its `held_out/<domain>/loss` curves.

    Raises:
      KeyError: a domain was not measured.
      ValueError: there is no upstream domain, a domain is named twice or as `MEAN`, the domains were measured
        at different steps, or not at step 0.
    """
    domains = [target, *upstream]
    if not upstream or len(set(domains)) < len(domains) or MEAN in domains:
        raise ValueError(
            f"Forgetting needs one target and at least one other upstream domain, each named once and "
            f"none named {MEAN!r}; got target {target!r} and upstream {list(upstream)}."
        )
    read = {domain: cv.series(curves, run, f"held_out/{domain}/loss") for domain in domains}
    steps_N = read[target].steps_N
    for domain, (other_N, _) in read.items():
        if not np.array_equal(steps_N, other_N):
            raise ValueError(
                f"Run {run!r} measured {domain!r} at the steps {other_N.tolist()} and {target!r} at "
                f"{steps_N.tolist()}: all domains must be measured together."
            )
    if steps_N[0] != 0:
        raise ValueError(
            f"Run {run!r} was first measured at step {steps_N[0]}. Gain and forgetting are relative to the "
            f"base, so step 0 must be measured, before any update."
        )
    return make_trajectory(steps_N, {domain: read[domain].values_N for domain in domains}, target)


def best(gain_N: np.ndarray) -> int:
    """The index of the first of the largest finite gains (0 if there is none: the base has gain 0)."""
    return int(np.argmax(np.where(np.isfinite(gain_N), gain_N, -np.inf)))


def crossing(t: Trajectory, gain: float) -> Crossing:
    """Interpolate a run linearly, between measurements, at the first point where it reaches `gain`.

    With the first measurement i whose gain g_i is at least g, and w = (g - g_{i-1}) / (g_i - g_{i-1}):

        change(g) = (1 - w) change_{i-1} + w change_i

    The *first* crossing, because a run that overshoots and comes back has forgotten more without gaining
    anything. Measurements that are not finite (a diverged run) are passed over.
    """
    finite_N = np.isfinite(t.gain_N) & np.isfinite(t.change[MEAN])
    gain_M = t.gain_N[finite_N]
    reached_M = gain_M >= gain
    if not reached_M.any():
        return Crossing(np.nan, dict.fromkeys(t.change, np.nan))
    i = int(np.argmax(reached_M))
    w = 0.0 if i == 0 else (gain - gain_M[i - 1]) / (gain_M[i] - gain_M[i - 1])

    def at(values_N: np.ndarray) -> float:
        values_M = values_N[finite_N]
        return float((1 - w) * values_M[max(i - 1, 0)] + w * values_M[i])

    return Crossing(at(t.steps_N), {domain: at(change_N) for domain, change_N in t.change.items()})
