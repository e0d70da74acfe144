"""The numbers of a forgetting study: what each method gained, what it forgot, and that at equal gain.

Everything is in nats/token unless its name says otherwise. Intervals are Student's, over runs that differ in
their seed only, as `{"mean", "low", "high", "n", "sd"}`; with one seed `low`, `high` and `sd` are nan.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from adaptlab import stats
from adaptlab.report import curves as cv
from adaptlab.report.outcomes import IDENTITY, Outcomes, Runs, best_gain, best_rate, final_gain, outcomes
from adaptlab.report.trajectory import Crossing, Trajectory, best, crossing
from adaptlab.report.zone import usable_zone

__all__ = ["FRACTIONS", "summarise"]

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
USABLE = 0.9  # of the best gain over all learning rates: what makes a rate usable

Groups = dict[tuple[str, float], list[str]]  # (method, lr) -> its runs by seed


def summarise(
    curves: pa.Table,
    runs: Runs,
    target: str,
    upstream: Sequence[str],
    fractions: Sequence[float] = FRACTIONS,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Return the summary of a study.

    Each method is represented by the learning rate with the best target gain, averaged over seeds (a rate at
    which a run diverged only if they all did). Equal gains are `fractions` of the largest gain that every
    run of those rates reached, so that no curve is extrapolated.

    Args:
      curves: the held-out measurements; see `report.curves`.
      runs: `{run: {"method", "lr", "seed", …}}`. Further numbers (parameters, FLOPs, tokens/s, …) are
        averaged over seeds under "extra"; `diverged_at` (a step or None) marks a run that diverged.
      target: the domain adapted to.
      upstream: the domains that may be forgotten.
      fractions: of the gain that all reached, each in (0, 1].
      confidence: the level of the intervals.

    Raises:
      KeyError, ValueError: runs lack an attribute, repeat a seed, or their curves cannot be compared.
    """
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError(f"fractions must be in (0, 1], got {list(fractions)}.")
    found = outcomes(curves, runs, target, upstream)
    every = {o.run: o for rates in found.values() for seeds in rates.values() for o in seeds.values()}
    paths = {run: every[run].path for run in runs}
    diverged = {run: every[run].diverged for run in runs}
    groups = {(m, lr): [o.run for o in seeds.values()] for m, rates in found.items() for lr, seeds in rates.items()}
    chosen = {method: best_rate(rates) for method, rates in found.items()}
    compared = [run for method, lr in chosen.items() for run in groups[method, lr]]
    limit = min(best_gain(paths[run]) for run in compared)
    levels = [fraction * limit for fraction in fractions] if limit > 0 else []
    crossings = {run: [crossing(paths[run], level) for level in levels] for run in runs}
    rows = [
        {
            "method": method,
            "lr": lr,
            "representative": chosen[method] == lr,
            "seeds": [runs[run]["seed"] for run in names],
            "diverged": [run for run in names if diverged[run]],
            **_outcome([paths[run] for run in names], confidence),
            "equal_gain": _at_levels(levels, [crossings[run] for run in names], confidence),
            "final": _final(curves, names, [target, *upstream], confidence),
            "extra": _extra([runs[run] for run in names], confidence),
        }
        for (method, lr), names in groups.items()
    ]
    return {
        "target": target,
        "upstream": list(upstream),
        "unit": "nats/token",
        "confidence": confidence,
        "base": _base(curves, next(iter(runs)), [target, *upstream]),
        "equal_gain": {"largest": limit, "fractions": list(fractions), "levels": levels, "runs": compared},
        "methods": {row["method"]: row for row in rows if row["representative"]},
        "comparisons": _comparisons(runs, groups, chosen, levels, crossings, confidence),
        "groups": rows,
        "zones": _zones(found, confidence),
        "runs": {run: _run(runs[run], paths[run], levels, crossings[run]) for run in runs},
        "warnings": _warnings(paths, diverged, limit),
    }


def _interval(values: Sequence[float], confidence: float) -> dict[str, Any]:
    return stats.interval(values, confidence)._asdict()


def _outcome(paths: Sequence[Trajectory], confidence: float) -> dict[str, Any]:
    """Gain and forgetting at the end of the runs, and at their best step."""
    at = [best(path.gain_N) for path in paths]
    return {
        "final_gain": _interval([path.gain_N[-1] for path in paths], confidence),
        "best_gain": _interval([path.gain_N[i] for path, i in zip(paths, at, strict=True)], confidence),
        "best_step": _interval([path.steps_N[i] for path, i in zip(paths, at, strict=True)], confidence),
        "final_change": {
            domain: _interval([path.change[domain][-1] for path in paths], confidence) for domain in paths[0].change
        },
        "change_at_best": {
            domain: _interval([p.change[domain][i] for p, i in zip(paths, at, strict=True)], confidence)
            for domain in paths[0].change
        },
    }


def _at_levels(
    levels: Sequence[float], crossings: Sequence[Sequence[Crossing]], confidence: float
) -> list[dict[str, Any]]:
    """Forgetting at each level of gain; nan unless every seed reached it."""
    return [
        {
            "gain": level,
            "reached": sum(bool(np.isfinite(c.step)) for c in crossed),
            "step": _interval([c.step for c in crossed], confidence),
            "change": {
                domain: _interval([c.change[domain] for c in crossed], confidence) for domain in crossed[0].change
            },
        }
        for level, crossed in zip(levels, zip(*crossings, strict=True), strict=True)
    ]


def _comparisons(
    runs: Runs,
    groups: Groups,
    chosen: Mapping[str, float],
    levels: Sequence[float],
    crossings: Mapping[str, Sequence[Crossing]],
    confidence: float,
) -> list[dict[str, Any]]:
    """For each two methods at equal gain: how much more b forgot than a, paired by seed."""
    by_seed = {m: {runs[run]["seed"]: run for run in groups[m, lr]} for m, lr in chosen.items()}
    found = []
    for a, b in combinations(chosen, 2):
        seeds = [seed for seed in by_seed[a] if seed in by_seed[b]]
        for i, level in enumerate(levels if seeds else ()):
            pairs = [(crossings[by_seed[a][s]][i].change, crossings[by_seed[b][s]][i].change) for s in seeds]
            difference = {
                domain: _interval([y[domain] - x[domain] for x, y in pairs], confidence) for domain in pairs[0][0]
            }
            found.append({"a": a, "b": b, "gain": level, "seeds": seeds, "difference": difference})
    return found


def _zones(found: Outcomes, confidence: float) -> dict[str, dict[str, Any]]:
    """The usable learning rates of each method that has several: of the mean final gain, and of each seed's."""
    zones = {}
    for method, rates in found.items():
        seeds = set.intersection(*(set(row) for row in rates.values()))
        if len(rates) < 2 or not seeds:
            continue
        gain_SR = np.array([[final_gain(row[s]) for row in rates.values()] for s in sorted(seeds)])
        mean, each = usable_zone([*rates], gain_SR.mean(0), USABLE), [usable_zone([*rates], g, USABLE) for g in gain_SR]
        zones[method] = {
            "fraction": USABLE,
            **mean._asdict(),
            "width": _interval([zone.width for zone in each], confidence),
            "censored": sum(zone.censored for zone in each),
        }
    return zones


def _held_out(curves: pa.Table, run: str, domain: str) -> dict[str, np.ndarray]:
    prefix = f"held_out/{domain}/"
    names = [name for name in cv.metrics(curves, run) if name.startswith(prefix)]
    return {name.removeprefix(prefix): cv.series(curves, run, name).values_N for name in names}


def _base(curves: pa.Table, run: str, domains: Sequence[str]) -> dict[str, dict[str, float]]:
    return {d: {m: float(x[0]) for m, x in _held_out(curves, run, d).items()} for d in domains}


def _final(
    curves: pa.Table, names: Sequence[str], domains: Sequence[str], confidence: float
) -> dict[str, dict[str, Any]]:
    """Every held-out metric of every domain at the last step."""
    last = {d: [_held_out(curves, run, d) for run in names] for d in domains}
    return {
        domain: {metric: _interval([run[metric][-1] for run in held], confidence) for metric in held[0]}
        for domain, held in last.items()
    }


def _extra(attributes: Sequence[Mapping[str, Any]], confidence: float) -> dict[str, Any]:
    def is_number(value: Any) -> bool:
        return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)

    found = {}
    for name in attributes[0]:
        values = [a.get(name) for a in attributes]
        if name not in (*IDENTITY, "diverged_at") and all(is_number(x) for x in values):
            found[name] = stats.interval(np.array(values, np.float64), confidence)._asdict()
    return found


def _run(
    attributes: Mapping[str, Any], path: Trajectory, levels: Sequence[float], crossed: Sequence[Crossing]
) -> dict[str, Any]:
    i = best(path.gain_N)
    return {
        **attributes,
        "final_gain": float(path.gain_N[-1]),
        "best_gain": float(path.gain_N[i]),
        "best_step": int(path.steps_N[i]),
        "final_change": {domain: float(change_N[-1]) for domain, change_N in path.change.items()},
        "change_at_best": {domain: float(change_N[i]) for domain, change_N in path.change.items()},
        "equal_gain": [{"gain": g, **c._asdict()} for g, c in zip(levels, crossed, strict=True)],
    }


def _warnings(paths: Mapping[str, Trajectory], diverged: Mapping[str, bool], limit: float) -> list[str]:
    lost = [run for run in paths if diverged[run]]
    said = [f"Run {run} diverged: it counts with what it reached before." for run in lost]
    if len(lost) > 3:
        said = [f"{len(lost)} runs diverged and count with what they reached before: {', '.join(lost)}."]
    if limit <= 0:
        said.append("Some method gained nothing at its best learning rate, so methods have no equal gain.")
    return said + _other_starts(paths)


def _other_starts(paths: Mapping[str, Trajectory]) -> list[str]:
    """Say which runs did not start where the first did: one sentence for each domain, however many they are."""
    first, said = next(iter(paths)), []
    for domain, loss_N in paths[first].loss.items():
        start = {run: float(path.loss[domain][0]) for run, path in paths.items()}
        others = [run for run, loss in start.items() if not np.isclose(loss, loss_N[0], rtol=1e-5, atol=0)]
        if others:
            more = f" ({len(others) - 1} more runs differ too)" if len(others) > 1 else ""
            said.append(
                f"At step 0, run {others[0]} has loss {start[others[0]]:.6g} on {domain} and run {first} "
                f"{loss_N[0]:.6g}{more}: they did not start from the same base and text. Gain and forgetting count "
                f"from each run's own start."
            )
    return said
