"""Differences in the last bits in words: what their page and the console table have in common."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from adaptlab.report.words import number

__all__ = ["apart_from", "scientific", "with_interval"]


def scientific(value: float | None) -> str:
    """Return a number with two digits and a power of ten, 0 as 0, and a dash for nan."""
    if value is None or not math.isfinite(value):
        return number(None)
    return "0" if value == 0 else f"{value:.1e}".replace("-", "\N{MINUS SIGN}")


def with_interval(found: Mapping[str, Any], form: Any = scientific) -> str:
    """Return a mean with its interval, if there is one."""
    low, high = found["low"], found["high"]
    if low is None or not math.isfinite(low) or low == high:
        return form(found["mean"])
    return f"{form(found['mean'])} [{form(low)}, {form(high)}]"


def apart_from(found: Sequence[int | None]) -> str:
    """Say from which update on the training losses differ."""
    steps = sorted({step for step in found if step is not None})
    if not steps:
        return "never"
    said = str(steps[0]) if len(steps) == 1 else f"{steps[0]}\N{EN DASH}{steps[-1]}"
    return said if None not in found else f"{said} or never"
