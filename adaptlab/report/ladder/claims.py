"""What claims about a ladder compare: numbers of single runs, pooled over all runs of a seed whose methods match."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from adaptlab.report.effects import Effect, Sample
from adaptlab.report.outcomes import Outcome, Outcomes
from adaptlab.report.quantities import Reading
from adaptlab.report.trajectory import MEAN

__all__ = ["pooled", "rank_with_forgetting"]

Pool = Sequence[Outcome]


def pooled(number: str, methods: str, *, bound: str | None = None) -> Effect:
    """The mean of a number over all runs of a seed, such as the effective data transferred.

        effect_s = mean of the number over the runs of seed s whose method matches

    Args:
      number: what was measured of a run.
      methods: a pattern for whole names of methods, e.g. `n\\d+_full_.*`.
      bound: a second number that is 1 where the first is only a lower bound, or None.
    """

    def read(runs: Pool) -> Reading:
        values = [run.update[number] for run in runs if number in run.update]
        if not values:
            return Reading(math.nan, note=f"no run has {number.replace('_', ' ')}")
        at_least = bound is not None and any(run.update.get(bound) for run in runs)
        note = f"{number.replace('_', ' ')} is only a lower bound for some runs" if at_least else ""
        return Reading(float(np.mean(values)), "at least" if at_least else "", note)

    return _effect(f"mean {number.replace('_', ' ')}", methods, read)


def rank_with_forgetting(number: str, methods: str) -> Effect:
    """Spearman's correlation, over the runs of a seed, of a number with the final change of upstream loss.

        effect_s = rho(number, F),   F the mean over upstream domains

    Args:
      number: what was measured of a run, such as how many parameters it trains.
      methods: a pattern for whole names of methods.
    """

    def read(runs: Pool) -> Reading:
        pairs = [(run.update[number], run.path.change[MEAN][-1]) for run in runs if number in run.update]
        if len({x for x, _ in pairs}) < 3:
            return Reading(math.nan, note=f"{len(pairs)} runs are too few values of {number.replace('_', ' ')}")
        from scipy.stats import spearmanr  # here, so that importing this module stays cheap

        found: Any = spearmanr([x for x, _ in pairs], [y for _, y in pairs])
        return Reading(float(found.statistic))

    return _effect(f"rank correlation of {number.replace('_', ' ')} with final forgetting", methods, read)


def _effect(says: str, methods: str, read: Callable[[Pool], Reading]) -> Effect:
    pattern = re.compile(methods)

    def measure(found: Outcomes) -> Sample:
        names = [name for name in found if pattern.fullmatch(name)]
        if not names:
            return Sample({}, {}, {}, [f"no method matches {methods!r}; there are {', '.join(found)}"])
        pools: dict[int, list[Outcome]] = {}
        for name in names:
            for seeds in found[name].values():
                for seed, run in seeds.items():
                    if not run.diverged:
                        pools.setdefault(seed, []).append(run)
        readings = {seed: read(runs) for seed, runs in sorted(pools.items())}
        values = {says: {seed: one.value for seed, one in readings.items()}}
        notes = [f"seed {seed}: {one.note}" for seed, one in readings.items() if one.note]
        return Sample(readings, {seed: Reading(0.0) for seed in readings}, values, notes)

    return Effect(f"{says}, over {methods}", measure)
