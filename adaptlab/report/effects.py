"""Effects: how much an arm of a study differs from another, one number for each seed.

An arm is a method by its name in the study. An effect is oriented so that a positive number favours the claim it
stands in, and is named in yaml:

    _target_: adaptlab.report.effects.difference
    quantity: {_target_: adaptlab.report.quantities.forgetting_at_gain}
    arm: lora
    against: full_linear
    better: lower
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from adaptlab.report.outcomes import Outcome, Outcomes, best_rate
from adaptlab.report.quantities import OfArms, OfRun, Quantity, Reading

__all__ = ["Effect", "Sample", "difference", "log_ratio", "opposite"]

Better = Literal["higher", "lower"]
Rates = str | float
Readings = dict[int, Reading]

_FLIPPED = {"": "", "at least": "at most", "at most": "at least", "unknown": "unknown"}
_POLICIES = {
    "best": "each at its best learning rate",
    "reference": "both at the best learning rate of {against}",
    "same": "mean over the learning rates that both ran",
}


class Sample(NamedTuple):
    """What an effect found; the effect of a seed is that of `arm` minus that of `against`.

    Attributes:
      arm: `{seed: reading}` of the arm, oriented (and in logarithms, for a ratio).
      against: the same of the other arm.
      values: `{arm: {seed: value}}` as measured, not oriented.
      notes: what diverged, was missing or is only a bound.
    """

    arm: Readings
    against: Readings
    values: dict[str, dict[int, float]]
    notes: list[str]


class Effect(NamedTuple):
    """What is compared, in words, and the function that measures it in a study."""

    says: str
    measure: Callable[[Outcomes], Sample]


def difference(quantity: Quantity, arm: str, against: str, better: Better, rates: Rates = "best") -> Effect:
    """The difference of a quantity between two arms.

        effect_s = +-(q(arm, s) - q(against, s)),   + if higher is better

    Args:
      quantity: what is compared; see `report.quantities`.
      arm: the method that the claim favours.
      against: the method it is compared with.
      better: whether the claim is that `arm` has the "higher" or the "lower" quantity.
      rates: for a quantity of single runs, at which learning rates: "best" (each arm at its own best one, by the
        mean best gain over seeds, as in the summary), "reference" (both at the best of `against`), "same" (the mean
        over all that both ran), or one number.
    """
    sign = _sign(better)
    words = _says(quantity, arm, against, rates, f"{arm} minus {against}" if sign > 0 else f"{against} minus {arm}")
    return Effect(words, lambda o: _sample(o, quantity, arm, against, rates, lambda r: _scaled(r, sign)))


def log_ratio(quantity: Quantity, arm: str, against: str, better: Better, rates: Rates = "best") -> Effect:
    """The log10 ratio of a positive quantity between two arms: 1 is ten times, 0.3 about twice.

        effect_s = +-(log10 q(arm, s) - log10 q(against, s)),   + if higher is better

    Args: as of `difference`.
    """
    sign = _sign(better)
    words = _says(quantity, arm, against, rates, f"{arm} over {against}" if sign > 0 else f"{against} over {arm}")
    return Effect(f"log10 of {words}", lambda o: _sample(o, quantity, arm, against, rates, lambda r: _log(r, sign)))


def opposite(bound: str) -> str:
    """What a bound becomes when the sign of its number is turned."""
    return _FLIPPED[bound]


def _sample(
    found: Outcomes, quantity: Quantity, arm: str, against: str, rates: Rates, scale: Callable[[Reading], Reading]
) -> Sample:
    if absent := [name for name in (arm, against) if name not in found]:
        return Sample({}, {}, {}, [f"{name} was not run; the study has {', '.join(found)}" for name in absent])
    if isinstance(quantity, OfRun):
        (a, b), notes = _over_runs(found, quantity, arm, against, rates)
    elif isinstance(quantity, OfArms):
        (a, b), notes = quantity.read([found[arm], found[against]])
    else:
        sides = [_over_seeds(found, quantity.read, name) for name in (arm, against)]
        (a, b), notes = [side[0] for side in sides], [note for side in sides for note in side[1]]
    for name, readings in ((arm, a), (against, b)):
        notes += [f"{name}, seed {s}: {r.note}" for s, r in readings.items() if r.note]
    values = {name: {s: r.value for s, r in readings.items()} for name, readings in ((arm, a), (against, b))}
    a, b = ({s: scale(r) for s, r in side.items()} for side in (a, b))
    return Sample(a, b, values, list(dict.fromkeys(notes)))


def _over_runs(
    found: Outcomes, quantity: OfRun, arm: str, against: str, rates: Rates
) -> tuple[list[Readings], list[str]]:
    """Read both arms at each pair of learning rates, and average what each seed has over them."""
    pairs = _pairs(found, arm, against, rates)
    if not pairs:
        return [{}, {}], [f"{arm} and {against} have no common learning rate for rates={rates!r}"]
    notes, cells = [], []
    for pair in pairs:
        sides = [found[name][rate] for name, rate in zip((arm, against), pair, strict=True)]
        runs = [run for side in sides for run in side.values()]
        notes += [f"{run.run} diverged" for run in runs if run.diverged]
        by_run = {run.run: reading for run, reading in zip(runs, quantity.read(runs), strict=True)}
        if all(math.isnan(reading.value) for reading in by_run.values()) and len(pairs) > 1:
            notes.append(f"learning rate {pair[0]:g} does not count: {next(iter(by_run.values())).note}")
            continue
        cells.append([{seed: by_run[run.run] for seed, run in side.items()} for side in sides])
    seeds = [sorted({seed for row in found[name].values() for seed in row}) for name in (arm, against)]
    return [{s: _mean([cell[i].get(s, _ABSENT) for cell in cells]) for s in seeds[i]} for i in (0, 1)], notes


def _over_seeds(
    found: Outcomes, read: Callable[[Mapping[float, Outcome]], Reading], name: str
) -> tuple[Readings, list[str]]:
    seeds = sorted({seed for row in found[name].values() for seed in row})
    rows = {s: {rate: row[s] for rate, row in found[name].items() if s in row} for s in seeds}
    gaps = [f"{name}, seed {s}: no run at {r:g}" for s, row in rows.items() for r in found[name] if r not in row]
    lost = [f"{run.run} diverged" for row in rows.values() for run in row.values() if run.diverged]
    return {s: read(row) for s, row in rows.items()}, gaps + lost


def _pairs(found: Outcomes, arm: str, against: str, rates: Rates) -> list[tuple[float, float]]:
    if rates == "best":
        return [(best_rate(found[arm]), best_rate(found[against]))]
    wanted = [best_rate(found[against])] if rates == "reference" else [*found[arm]] if rates == "same" else [rates]
    pairs = [(_find(found[arm], rate), _find(found[against], rate)) for rate in wanted]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _find(rates: Iterable[float], wanted: float | str) -> float | None:
    """The rate that is the wanted one up to rounding: 0.1 * 1e-2 is 1e-3."""
    return next((rate for rate in rates if math.isclose(rate, float(wanted), rel_tol=1e-9)), None)


_ABSENT = Reading(math.nan, note="there is no run")


def _mean(readings: Sequence[Reading]) -> Reading:
    if not readings:
        return _ABSENT
    bounds = {r.bound for r in readings} - {""}
    bound = "" if not bounds else bounds.pop() if len(bounds) == 1 else "unknown"
    return Reading(
        float(np.mean([r.value for r in readings])), bound, "; ".join(dict.fromkeys(r.note for r in readings if r.note))
    )


def _scaled(reading: Reading, sign: int) -> Reading:
    return reading if sign > 0 else reading._replace(value=-reading.value, bound=opposite(reading.bound))


def _log(reading: Reading, sign: int) -> Reading:
    value = math.log10(reading.value) if reading.value > 0 else math.nan
    return _scaled(reading._replace(value=value), sign)


def _sign(better: str) -> int:
    if better not in ("higher", "lower"):
        raise ValueError(f"better={better!r} is neither 'higher' nor 'lower'.")
    return 1 if better == "higher" else -1


def _says(quantity: Quantity, arm: str, against: str, rates: Rates, compared: str) -> str:
    if not isinstance(quantity, OfRun):
        return f"{quantity.says}: {compared}"
    if isinstance(rates, str) and rates not in _POLICIES:
        raise ValueError(f"rates={rates!r} is none of {', '.join(_POLICIES)} or a learning rate.")
    at = _POLICIES[rates].format(against=against) if isinstance(rates, str) else f"at learning rate {rates:g}"
    return f"{quantity.says}: {compared}, {at}"
