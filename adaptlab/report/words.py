"""Numbers and results in words: what the HTML report and the console table have in common."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["EXTRA", "count", "effect", "extra_names", "headline", "judged", "listed", "number", "plain", "spread"]

_DASH = "\N{EN DASH}"  # stands for a number that does not exist
_MINUS = "\N{MINUS SIGN}"


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Return a number with fixed decimals and a true minus sign, or a dash for nan and None.

    >>> number(-0.12345), number(0.5, 1, sign=True), number(float("nan"))
    ('−0.123', '+0.5', '–')
    """
    if value is None or not math.isfinite(value):
        return _DASH
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", _MINUS)


def spread(interval: Mapping[str, Any], digits: int = 3, sign: bool = False) -> str:
    """Return a mean with its interval, or the mean alone where there is none.

    >>> spread({"mean": 1.0, "low": 0.5, "high": 1.5}, digits=1)
    '1.0 [0.5, 1.5]'
    >>> spread({"mean": 1.0, "low": None, "high": None}, digits=1)
    '1.0'
    """
    mean, low, high = (number(interval[key], digits, sign) for key in ("mean", "low", "high"))
    return mean if _DASH in (low, high) else f"{mean} [{low}, {high}]"


def count(value: float | None) -> str:
    """Return a large number with three digits and a unit prefix.

    >>> [count(v) for v in (0, 576, 2442240, 7.4e13, 1.2e30, None)]
    ['0', '576', '2.44 M', '74 T', '1.2e+30', '–']
    """
    if value is None or not math.isfinite(value):
        return _DASH
    for power, prefix in ((0, ""), (3, " k"), (6, " M"), (9, " G"), (12, " T"), (15, " P"), (18, " E")):
        if abs(value) < 999.5 * 10**power:
            return f"{value / 10**power:.3g}{prefix}"
    return f"{value:.3g}"


def plain(name: str) -> str:
    """Return a name from the config as words: `"english_news"` as "english news"."""
    return name.replace("_", " ")


# What experiments are known to record for each run besides its curves: label and format.
EXTRA: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "trainable_parameters": ("Trainable parameters", count),
    "flops": ("FLOPs", count),
    "flops_per_token": ("FLOPs per token", count),
    "tokens_per_second": ("Tokens/s", count),
    "peak_memory_bytes": ("Peak memory (bytes)", count),
    "delta_bytes": ("Adapter file (bytes)", count),
    "seconds": ("Seconds", count),
}


def extra_names(summary: Mapping[str, Any]) -> dict[str, tuple[str, Callable[[float | None], str]]]:
    """The further numbers that any method has: known ones first, under their label."""
    present = dict.fromkeys(name for row in summary["groups"] for name in row["extra"])
    known = {name: EXTRA[name] for name in EXTRA if name in present}
    return known | {name: (plain(name), count) for name in present if name not in known}


def headline(summary: Mapping[str, Any]) -> list[str]:
    """Say the main result in plain sentences, with the number of seeds and the intervals."""
    methods = summary["methods"]
    if len(methods) > 4:
        return _extremes(summary)
    sentences = [
        f"{name} (learning rate {row['lr']:g}) lowered the loss on {plain(summary['target'])} by at most "
        f"{_phrase(row['best_gain'], summary)}."
        for name, row in methods.items()
    ]
    levels = summary["equal_gain"]["levels"]
    if levels:
        rises = [
            f"{_phrase(row['equal_gain'][-1]['change']['mean'], summary, sign=True)} with {name}"
            for name, row in methods.items()
        ]
        sentences.append(
            f"At the same gain of {number(levels[-1])} nats/token, the mean loss on "
            f"{listed([plain(d) for d in summary['upstream']])} changed by {listed(rises)}."
        )
        if len(methods) <= 3:  # beyond that the pairs fill a table better than a paragraph
            sentences += [_verdict(c, summary) for c in summary["comparisons"] if c["gain"] == levels[-1]]
    return sentences


def _extremes(summary: Mapping[str, Any]) -> list[str]:
    """The largest and smallest result of many methods: all of them fill tables and figures, not sentences."""
    rows, levels = list(summary["methods"].values()), summary["equal_gain"]["levels"]
    low, high = _ends(rows, lambda row: row["best_gain"])
    sentences = [
        f"Of {len(rows)} methods, each at its best learning rate, {high['method']} ({high['lr']:g}) lowered the loss "
        f"on {plain(summary['target'])} most, by at most {_phrase(high['best_gain'], summary)}, and {low['method']} "
        f"({low['lr']:g}) least, by at most {_phrase(low['best_gain'], summary)}."
    ]
    if levels:
        low, high = _ends(rows, lambda row: row["equal_gain"][-1]["change"]["mean"])
        phrases = [_phrase(row["equal_gain"][-1]["change"]["mean"], summary, sign=True) for row in (low, high)]
        sentences.append(
            f"At the same gain of {number(levels[-1])} nats/token, the mean loss on "
            f"{listed([plain(d) for d in summary['upstream']])} changed least with {low['method']}, by {phrases[0]}, "
            f"and most with {high['method']}, by {phrases[1]}."
        )
    return sentences


def _ends(rows: Sequence[Any], quantity: Callable[[Any], Mapping[str, Any]]) -> tuple[Any, Any]:
    """The rows with the lowest and the highest mean."""
    ordered = sorted(rows, key=lambda row: quantity(row)["mean"])
    return ordered[0], ordered[-1]


def effect(verdict: Mapping[str, Any], digits: int = 3) -> str:
    """Return the effect of a verdict with the interval that was judged, open where only a bound is known.

    >>> effect({"bound": "", "effect": {"mean": 0.5, "low": 0.25, "high": 0.75}}, digits=2)
    '+0.50 [+0.25, +0.75]'
    >>> effect({"bound": "at least", "effect": {"mean": 0.5, "low": 0.25, "high": None}}, digits=2)
    '≥ +0.50 [+0.25, ∞)'
    """
    mean, low, high = (number(verdict["effect"][key], digits, sign=True) for key in ("mean", "low", "high"))
    sign = {"at least": "≥ ", "at most": "≤ ", "unknown": "≈ "}.get(verdict["bound"], "")
    below, above = verdict["bound"] in ("at most", "unknown"), verdict["bound"] in ("at least", "unknown")
    if (low == _DASH and not below) or (high == _DASH and not above) or mean == _DASH:
        return f"{sign}{mean}"
    return f"{sign}{mean} {f'({_MINUS}∞' if below else f'[{low}'}, {'∞)' if above else f'{high}]'}"


def judged(verdicts: Mapping[str, Any]) -> str:
    """Say how many claims were tested, and what their number does to the intervals."""
    stated, tested = verdicts["stated"], verdicts["tested"]
    said = [row["verdict"] for row in verdicts["claims"].values()]
    counts = listed([f"{said.count(v)} {v}" for v in ("supported", "contradicted", "inconclusive") if v in said])
    were = "s were" if stated > 1 else " was"
    text = f"{stated} claim{were} stated before the runs: {counts}; {tested} could be tested."
    if tested < 2:
        return text
    chance = 1 - min(row["stated_level"] for row in verdicts["claims"].values())
    return (
        f"{text} Their intervals are widened by Holm's step-down method, so that the chance of any wrong decision "
        f"among the {tested} is at most {chance:.4g}."
    )


def _phrase(interval: Mapping[str, Any], summary: Mapping[str, Any], sign: bool = False) -> str:
    mean, low, high = (number(interval[key], sign=sign) for key in ("mean", "low", "high"))
    if interval["n"] < 2:
        return f"{mean} nats/token (one seed: no interval)"
    if low == _DASH:
        return f"{mean} nats/token (n = {interval['n']} seeds, no interval)"
    level = f"{summary['confidence']:.0%}"
    return f"{mean} nats/token ({level} interval {low} to {high}, n = {interval['n']} seeds)"


def _verdict(comparison: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    a, b, difference = comparison["a"], comparison["b"], comparison["difference"]["mean"]
    if difference["mean"] is None or not math.isfinite(difference["mean"]):
        return f"{a} and {b} cannot be compared at that gain."
    more, less = (b, a) if difference["mean"] > 0 else (a, b)
    phrase = f"At that gain it is {number(abs(difference['mean']))} nats/token higher with {more} than with {less}"
    if difference["n"] < 2:
        return f"{phrase}; what other seeds would say is not known."
    low, high = difference["low"], difference["high"]
    clear = "excludes zero" if low > 0 or high < 0 else "includes zero: these seeds do not settle the order"
    return (
        f"{phrase} ({b} minus {a}, paired by seed: {summary['confidence']:.0%} interval "
        f"{number(low, sign=True)} to {number(high, sign=True)}, n = {difference['n']} seeds, which {clear})."
    )


def listed(items: list[str]) -> str:
    """Join items as in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
