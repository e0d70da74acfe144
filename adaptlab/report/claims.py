"""Claims, stated before a study runs, and the verdicts that its results give.

A claim says that an effect, oriented so that positive favours it, is larger than `margin` (and smaller than `ceiling`,
where "about as large as" is claimed). With [low, high] the interval of the mean effect over seeds:

    supported     margin < low and high < ceiling       the interval lies in the claimed region
    contradicted  high < margin or low > ceiling        it lies outside
    inconclusive  otherwise, or too few seeds, or no interval

A precise null effect contradicts a claim with a positive margin and leaves one with margin 0, which is a sign test,
inconclusive. Where seeds give only bounds of their effect, the end of the interval that the bounds do not speak of is
infinite, and the same rule holds.

Several claims are judged by Holm's step-down method, so that the chance of any wrong decision among all of them is at
most 1 - level: with m claims tested, the clearest is judged by its interval at 1 - (1 - level) / m, the next at
1 - (1 - level) / (m - 1), and so on to the first that is not settled; that one and all after it are inconclusive.
Unlike Bonferroni's correction it charges only the clearest claim the full price. The interval reported is the one
that was judged, so that verdict and interval never disagree.

Reference: Holm (1979), "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from adaptlab import stats
from adaptlab.report.effects import Effect, Sample, opposite
from adaptlab.report.outcomes import Runs, outcomes

__all__ = ["Claim", "Verdict", "claim", "judge", "rule", "verdicts_table"]

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"


class Claim(NamedTuple):
    """A statement that a study can support or contradict; made by `claim`, which has the attributes."""

    statement: str
    source: str
    effect: Effect
    unit: str
    margin: float
    ceiling: float | None
    level: float
    min_seeds: int


class Verdict(NamedTuple):
    """What a study says about a claim.

    Attributes:
      claim: what was claimed.
      verdict: "supported", "contradicted" or "inconclusive".
      effect: the mean effect and the interval that was judged; an end is infinite where the effects are only bounds.
      level: the level of that interval, after the correction for the number of claims.
      bound: "", or "at least", "at most" or "unknown" where the effect of some seed is only a bound.
      per_seed: `{seed: effect}` where the arms share seeds, otherwise empty.
      values: `{arm: {seed: value}}`, what was measured, not oriented.
      reason: why, in words.
      notes: what diverged, was missing or is only a bound.
      tested: whether it counts among the claims tested: there were enough seeds and an interval.
    """

    claim: Claim
    verdict: str
    effect: stats.Interval
    level: float
    bound: str
    per_seed: dict[int, float]
    values: dict[str, dict[int, float]]
    reason: str
    notes: list[str]
    tested: bool


def claim(
    statement: str,
    source: str,
    effect: Effect,
    unit: str,
    margin: float = 0.0,
    ceiling: float | None = None,
    level: float = 0.95,
    min_seeds: int = 5,
) -> Claim:
    """State a claim.

    Args:
      statement: one sentence.
      source: where it is from.
      effect: what measures it, positive in its favour; see `report.effects`.
      unit: of the effect.
      margin: the smallest effect that would count.
      ceiling: the largest that the claim allows; None for any.
      level: of the interval, for all claims of a study together.
      min_seeds: with fewer, nothing is decided.

    Raises:
      ValueError: an argument that no study could be judged by.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}; 0.95 is usual.")
    if ceiling is not None and ceiling <= margin:
        raise ValueError(f"ceiling={ceiling} must be above margin={margin}: the claim allows what lies between.")
    if min_seeds < 2:
        raise ValueError(f"min_seeds={min_seeds}: an interval over seeds needs at least 2.")
    return Claim(statement, source, effect, unit, margin, ceiling, level, min_seeds)


class _Draft(NamedTuple):
    """A claim's numbers before it is judged."""

    sample: Sample
    estimate: stats.Estimate
    bound: str
    per_seed: dict[int, float]
    notes: list[str]
    obstacle: str  # why it cannot be tested


def judge(
    claims: Mapping[str, Claim], curves: pa.Table, results: Runs, target: str, upstream: Sequence[str]
) -> dict[str, Verdict]:
    """Judge all claims of a study together.

    Arms that share seeds are compared in pairs, by Student's interval of the differences; arms with other seeds by
    Welch's interval. A seed whose effect cannot be computed is left out, and so is a run that a sweep pruned before
    its end; the verdict's notes say so.

    Args:
      claims: by name.
      curves: the held-out measurements; see `report.curves`.
      results: `{run: {"method", "lr", "seed", …}}`; see `summarise`. `pruned_at` (a step or None) marks a run that
        ended early.
      target: the domain adapted to.
      upstream: the domains that may be forgotten.
    """
    pruned = {run: a for run, a in results.items() if a.get("pruned_at") is not None}
    found = outcomes(curves, {run: a for run, a in results.items() if run not in pruned}, target, upstream)
    drafts = {name: _draft(one, one.effect.measure(found)) for name, one in claims.items()}
    for draft in drafts.values():
        cut = [f"{r} was pruned and does not count" for r, a in pruned.items() if a["method"] in draft.sample.values]
        draft.notes.extend(cut)
    levels = _step_down(claims, {name: d for name, d in drafts.items() if not d.obstacle})
    return {name: _verdict(one, drafts[name], levels.get(name)) for name, one in claims.items()}


def rule(interval: stats.Interval, margin: float, ceiling: float | None) -> str:
    """Return the verdict on one interval; an end may be infinite. See the module's description."""
    limit = math.inf if ceiling is None else ceiling
    if interval.high < margin or interval.low > limit:
        return CONTRADICTED
    inside = interval.low > margin and (ceiling is None or interval.high < limit)
    return SUPPORTED if inside else INCONCLUSIVE


def _draft(one: Claim, sample: Sample) -> _Draft:
    shared = [seed for seed in sample.arm if seed in sample.against]
    notes = list(sample.notes)
    if shared or not (sample.arm and sample.against):
        per_seed = {s: sample.arm[s].value - sample.against[s].value for s in shared}
        kept = {s: v for s, v in per_seed.items() if math.isfinite(v)}
        alone = sorted({*sample.arm, *sample.against} - {*kept})
        notes += [f"seed {s} is left out: it has no effect to compare" for s in alone]
        bounds = {sample.arm[s].bound for s in kept} | {opposite(sample.against[s].bound) for s in kept}
        return _drafted(one, sample, stats.estimate([*kept.values()]), bounds, kept, notes)
    sides = [{s: r for s, r in side.items() if math.isfinite(r.value)} for side in (sample.arm, sample.against)]
    for name, side, kept in zip(sample.values, (sample.arm, sample.against), sides, strict=True):
        notes += [f"{name}, seed {s} is left out: it has no value" for s in side if s not in kept]
    notes.append("the arms share no seed and are compared as independent groups (Welch)")
    arm, against = ([r.value for r in side.values()] for side in sides)
    bounds = {r.bound for r in sides[0].values()} | {opposite(r.bound) for r in sides[1].values()}
    return _drafted(one, sample, stats.welch(against, arm), bounds, {}, notes)


def _drafted(
    one: Claim,
    sample: Sample,
    estimate: stats.Estimate,
    bounds: set[str],
    per_seed: dict[int, float],
    notes: list[str],
) -> _Draft:
    bounds = bounds - {""}
    bound = "" if not bounds else bounds.pop() if len(bounds) == 1 else "unknown"
    obstacle = ""
    if estimate.n < one.min_seeds:
        obstacle = f"{estimate.n} of the {one.min_seeds} seeds it needs"
    elif not estimate.se > 1e-12 * abs(estimate.mean):  # all equal, up to rounding
        obstacle = "every seed gave the same number, so the spread over seeds is not known"
    return _Draft(sample, estimate, bound, per_seed, notes, obstacle)


def _step_down(claims: Mapping[str, Claim], drafts: Mapping[str, _Draft]) -> dict[str, float]:
    """Holm's levels: `{claim: level of the interval it is judged by}`."""

    def p_over_alpha(name: str) -> float:
        one, draft = claims[name], drafts[name]
        mean = draft.estimate.mean
        if rule(_interval(draft, None), one.margin, one.ceiling) == INCONCLUSIVE:
            return math.inf  # at no level would it be settled
        bounds = [one.margin] if one.ceiling is None else [one.margin, one.ceiling]
        return draft.estimate.p_value(min(abs(mean - bound) for bound in bounds)) / (1 - one.level)

    ratios = sorted((p_over_alpha(name), name) for name in drafts)
    levels, share = {}, len(ratios)
    for ratio, name in ratios:
        levels[name] = 1 - (1 - claims[name].level) / share
        if ratio * share < 1:  # settled; otherwise what follows is judged at the same price, and is not settled either
            share -= 1
    return levels


def _interval(draft: _Draft, level: float | None) -> stats.Interval:
    """The interval at a level (None: the mean alone), with the ends open that bounds leave open."""
    mean = draft.estimate.mean
    found = stats.Interval(mean, mean, mean, 0, 0.0) if level is None else draft.estimate.interval(level)
    if draft.bound in ("at most", "unknown"):
        found = found._replace(low=-math.inf)
    if draft.bound in ("at least", "unknown"):
        found = found._replace(high=math.inf)
    return found


def _verdict(one: Claim, draft: _Draft, level: float | None) -> Verdict:
    at = one.level if level is None else level
    found = _interval(draft, at)
    said = INCONCLUSIVE if level is None else rule(found, one.margin, one.ceiling)
    return Verdict(
        claim=one,
        verdict=said,
        effect=found,
        level=at,
        bound=draft.bound,
        per_seed=draft.per_seed,
        values=draft.sample.values,
        reason=draft.obstacle or _reason(one, found, said, draft.bound),
        notes=draft.notes,
        tested=level is not None,
    )


def _reason(one: Claim, found: stats.Interval, said: str, bound: str) -> str:
    region = _region(one)
    if said == SUPPORTED:
        return f"the interval lies in the claimed region, {region}"
    if said == CONTRADICTED:
        if one.ceiling is not None and found.low > one.ceiling:
            return f"the effect is larger than the claim allows ({region})"
        if found.high < 0:
            return "the effect has the opposite sign"
        sign = "is there, but is" if found.low > 0 else "cannot be told from zero, and is"
        return f"the effect {sign} smaller than would count ({region})"
    if bound:
        return f"some seeds give only a bound of the effect ({bound}), and it does not settle {region}"
    return f"the interval crosses the edge of the claimed region, {region}"


def _region(one: Claim) -> str:
    if one.ceiling is None:
        return f"effect > {one.margin:g} {one.unit}"
    return f"{one.margin:g} < effect < {one.ceiling:g} {one.unit}"


def verdicts_table(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """Return verdicts as plain values for JSON, tables and pages, with how many claims were stated and tested."""
    rows = {}
    for name, v in verdicts.items():
        one = v.claim
        rows[name] = {
            "statement": one.statement,
            "source": one.source,
            "measures": one.effect.says,
            "rule": f"{_region(one)}, {100 * one.level:.4g}% level, at least {one.min_seeds} seeds",
            **{key: getattr(one, key) for key in ("unit", "margin", "ceiling", "min_seeds")},
            "stated_level": one.level,
            **{key: getattr(v, key) for key in ("verdict", "reason", "level", "bound", "tested", "notes")},
            "effect": v.effect._asdict(),
            "per_seed": v.per_seed,
            "values": v.values,
        }
    tested = sum(v.tested for v in verdicts.values())
    return {"correction": "Holm", "stated": len(rows), "tested": tested, "claims": rows}
