"""The runs of a study by method, learning rate and seed: what its summary and its claims are computed from."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from adaptlab.report.trajectory import Trajectory, best, trajectory

__all__ = ["Outcome", "Outcomes", "Rates", "Runs", "best_gain", "best_rate", "final_gain", "outcomes"]

IDENTITY = ("method", "lr", "seed")

Runs = Mapping[str, Mapping[str, Any]]
"""`{run: {"method", "lr", "seed", …}}`; `diverged_at` (a step or None) marks a run that diverged.

`steps` is the number of updates it was to have (by default, up to the last measurement), and `update` what was measured
of its update after training, by name.
"""


class Outcome(NamedTuple):
    """One run.

    Attributes:
      run: its name.
      path: its way through gain and forgetting; a diverged run's may end early.
      updates: how many updates it was to have.
      diverged: whether it did.
      update: what was measured of its update after training, by name, averaged over matrices.
    """

    run: str
    path: Trajectory
    updates: int
    diverged: bool
    update: Mapping[str, float]


Rates = Mapping[float, Mapping[int, Outcome]]
"""`{learning rate: {seed: outcome}}` of one method."""

Outcomes = dict[str, dict[float, dict[int, Outcome]]]
"""`{method: {learning rate: {seed: outcome}}}`: methods in the study's order, the rest by increasing number."""


def outcomes(curves: pa.Table, runs: Runs, target: str, upstream: Sequence[str]) -> Outcomes:
    """Return the runs of a study with their trajectories.

    Args:
      curves: the held-out measurements; see `report.curves`.
      runs: what each run is.
      target: the domain adapted to.
      upstream: the domains that may be forgotten.

    Raises:
      KeyError, ValueError: there are no runs, runs lack an attribute or repeat a seed, or a curve is missing.
    """
    if not runs:
        raise ValueError("There are no runs to summarise.")
    for run, attributes in runs.items():
        if missing := [name for name in IDENTITY if name not in attributes]:
            raise KeyError(f"Run {run!r} has no {missing}; it has {sorted(attributes)}.")
    found: Outcomes = {a["method"]: {} for a in runs.values()}
    for run, a in sorted(runs.items(), key=lambda item: (item[1]["lr"], item[1]["seed"])):
        seeds = found[a["method"]].setdefault(a["lr"], {})
        if a["seed"] in seeds:
            raise ValueError(f"Runs {[seeds[a['seed']].run, run]} repeat a seed: they are not independent.")
        path = trajectory(curves, run, target, upstream)
        lost = a.get("diverged_at") is not None or not np.isfinite(path.gain_N[-1])
        seeds[a["seed"]] = Outcome(run, path, int(a.get("steps") or path.steps_N[-1]), lost, a.get("update") or {})
    return found


def best_gain(path: Trajectory) -> float:
    """The largest gain of a run at any step."""
    return float(path.gain_N[best(path.gain_N)])


def final_gain(outcome: Outcome) -> float:
    """The gain of a run at its last step; 0 if it diverged, since it ended with nothing that can be used."""
    return 0.0 if outcome.diverged else float(outcome.path.gain_N[-1])


def best_rate(rates: Rates) -> float:
    """The learning rate with the best gain, averaged over seeds; of equal ones the smallest.

    A rate at which a run diverged counts only if one did at every rate.

    Args:
      rates: the outcomes of one method.
    """

    def score(rate: float) -> tuple[bool, float]:
        runs = rates[rate].values()
        return not any(run.diverged for run in runs), float(np.mean([best_gain(run.path) for run in runs]))

    return max(sorted(rates), key=score)
