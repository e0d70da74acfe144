"""What claims about loss landscapes compare: numbers measured of runs after training, and rank correlations.

The numbers are those of an outcome's `update`; see `report.outcomes` and `adaptlab.study.landscape.lines`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptlab.report.effects import Better, Effect, Rates, Sample, difference
from adaptlab.report.outcomes import Outcome, Outcomes
from adaptlab.report.quantities import OfRun, OfSeed, Quantity, Reading
from adaptlab.report.trajectory import MEAN

__all__ = ["level", "number_of_pair", "number_of_run", "rank_correlation"]


def number_of_run(name: str) -> OfRun:
    """A number that was measured of each run after training, such as "barrier_target"."""
    return OfRun(name.replace("_", " "), lambda runs: [_number(run, name) for run in runs])


def number_of_pair(name: str) -> OfSeed:
    """A number of a run and its twin, which differ in their seed only; only one learning rate of an arm has twins."""

    def read(row: Mapping[float, Outcome]) -> Reading:
        found = [run.update[name] for run in row.values() if name in run.update]
        if len(found) != 1:
            return Reading(math.nan, note=f"{len(found)} learning rates have a twin, of which one is needed")
        return Reading(float(found[0]))

    return OfSeed(f"{name.replace('_', ' ')} between two seeds", read)


def level(quantity: Quantity, arm: str, better: Better, rates: Rates = "best") -> Effect:
    """The quantity of one arm by itself, so that a claim's margin is a level.

        effect_s = +-q(arm, s),   + if higher is better

    Args:
      quantity: what is measured.
      arm: whose.
      better: whether the claim is that it is "higher" or "lower" than a level. If lower, the effect is -q, and
        "q is at most 0.05" is an effect above the margin -0.05.
      rates: "best", "same" (all that it ran) or one number, as of `adaptlab.report.effects.difference`.
    """
    itself = difference(quantity, arm, arm, better, rates)

    def measure(found: Outcomes) -> Sample:
        sample = itself.measure(found)
        return sample._replace(against={seed: Reading(0.0) for seed in sample.arm})

    policy = {"best": ", at its best learning rate", "same": ", mean over its learning rates"}
    at = policy.get(str(rates), f", at learning rate {rates}") if isinstance(quantity, OfRun) else ""
    return Effect(f"{'' if better == 'higher' else 'minus the '}{quantity.says} of {arm}{at}", measure)


def rank_correlation(predictor: str, arms: Sequence[str], than: str | None = None) -> Effect:
    """Spearman's correlation, over the runs of a seed, of a predictor with the final forgetting.

        effect_s = ρ(predictor, F) - ρ(than, F),   F the mean change of upstream loss at the last step

    over all runs of seed s, of all `arms` and learning rates; without `than` the second term is zero. A run that
    diverged is left out.

    Args:
      predictor: a number measured of each run.
      arms: the methods whose runs count.
      than: the number it is compared with as a predictor.
    """

    def measure(found: Outcomes) -> Sample:
        if absent := [name for name in arms if name not in found]:
            return Sample({}, {}, {}, [f"{', '.join(absent)} was not run; the study has {', '.join(found)}"])
        runs = [item for name in arms for rates in found[name].values() for item in rates.items()]
        notes = [f"{run.run} diverged and does not count" for _, run in runs if run.diverged]
        by_seed: dict[int, list[Outcome]] = {}
        for seed, run in runs:
            if not run.diverged:
                by_seed.setdefault(seed, []).append(run)
        first = {seed: _spearman(some, predictor) for seed, some in by_seed.items()}
        second = {seed: Reading(0.0) if than is None else _spearman(some, than) for seed, some in by_seed.items()}
        values = {predictor: {seed: r.value for seed, r in first.items()}}
        values |= {} if than is None else {than: {seed: r.value for seed, r in second.items()}}
        notes += [f"seed {s}: {r.note}" for side in (first, second) for s, r in side.items() if r.note]
        return Sample(first, second, values, list(dict.fromkeys(notes)))

    against = "" if than is None else f" minus that of {than.replace('_', ' ')}"
    words = f"rank correlation of {predictor.replace('_', ' ')} with final forgetting{against}"
    return Effect(f"{words}, over the runs of a seed", measure)


def _spearman(runs: Sequence[Outcome], name: str) -> Reading:
    pairs = [(run.update[name], run.path.change[MEAN][-1]) for run in runs if name in run.update]
    pairs = [pair for pair in pairs if np.isfinite(pair).all()]
    if len(pairs) < 3:
        return Reading(math.nan, note=f"{len(pairs)} runs have {name}, and a correlation needs three")
    from scipy.stats import spearmanr  # here, so that importing this module stays cheap

    x, y = zip(*pairs, strict=True)
    if len(set(x)) == 1 or len(set(y)) == 1:
        return Reading(math.nan, note=f"all runs have the same {name} or the same forgetting")
    correlation: Any = spearmanr(x, y)  # SciPy's stubs do not know its fields
    return Reading(float(correlation.statistic))


def _number(run: Outcome, name: str) -> Reading:
    if name not in run.update:
        return Reading(math.nan, note=f"{name} was not measured; there are {sorted(run.update)}")
    value = float(run.update[name])
    return Reading(value, note="" if math.isfinite(value) else f"{run.run} has no finite {name}")
