"""The usable zone of learning rates: how wrong a rate may be before it costs."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Zone", "peak_rate", "usable_zone"]


class Zone(NamedTuple):
    """An interval of learning rates around the best one.

    Attributes:
      low: its lower edge; nan if no rate is usable.
      high: its upper edge; likewise.
      open_low: whether it reaches the lowest rate tried, so that it may go on below.
      open_high: whether it reaches the highest rate tried.
    """

    low: float
    high: float
    open_low: bool
    open_high: bool

    @property
    def width(self) -> float:
        """log10(high / low), in decades; 0 if no rate is usable. A lower bound if the zone is open."""
        return math.log10(self.high / self.low) if math.isfinite(self.low) else 0.0

    @property
    def censored(self) -> bool:
        """Whether the grid of rates ends before the zone does."""
        return self.open_low or self.open_high


def usable_zone(
    rates: Sequence[float],
    gains: Sequence[float],
    fraction: float = 0.9,
    changes: Sequence[float] | None = None,
    limit: float | None = None,
    tolerance: float | None = None,
) -> Zone:
    """Return the rates around the best with at least `fraction` of its gain (and at most `limit` forgotten).

        {r : g(r) >= fraction * max g,  f(r) <= limit},  the part connected to its rate with the most gain

    g and f are linear in log r between the rates tried. A gain that is negative or not finite (a diverged run)
    counts as 0: how far below nothing a run ended says nothing about where its neighbours stop being usable.

    Args:
      rates: the learning rates tried, increasing.
      gains: the gain at each.
      fraction: of the largest gain, in (0, 1].
      changes: the forgetting at each; needed with `limit`.
      limit: the largest forgetting that is usable; None for any.
      tolerance: by how much a usable gain may be below the largest, in place of `fraction`. Fractions compare what
        the rate costs relative to what there is to gain, tolerances what it costs in nats.

    >>> zone = usable_zone([1e-4, 1e-3, 1e-2], [0.8, 1.0, 0.8])
    >>> round(zone.width, 6), zone.censored  # g falls by .1 in half a decade on each side
    (1.0, False)
    >>> usable_zone([1e-4, 1e-3], [0.95, 1.0]).censored
    True
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}; 0.9 is usual.")
    if tolerance is not None and tolerance < 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance} nats/token.")
    if list(rates) != sorted(set(rates)) or len(rates) != len(gains) or not rates:
        raise ValueError(f"Rates must increase and have one gain each; got rates {list(rates)}, gains {list(gains)}.")
    gain_R = _floored(gains)
    if gain_R.max() <= 0:
        return Zone(math.nan, math.nan, False, False)
    least = fraction * gain_R.max() if tolerance is None else gain_R.max() - tolerance
    slacks = [gain_R - least]  # usable where none is negative
    if limit is not None:
        if changes is None or len(changes) != len(rates):
            raise ValueError(f"A limit of {limit} on forgetting needs the forgetting at each of {len(rates)} rates.")
        slacks.append(limit - np.nan_to_num(np.asarray(changes, np.float64), nan=np.inf))
    slack_CR, x_R = np.stack(slacks), np.log10(np.asarray(rates, np.float64))
    usable_R = np.all(slack_CR >= 0, axis=0)
    if not usable_R.any():
        return Zone(math.nan, math.nan, False, False)
    top = int(np.argmax(np.where(usable_R, gain_R, -np.inf)))
    (low, open_low), (high, open_high) = (_edge(x_R, slack_CR, usable_R, top, step) for step in (-1, 1))
    return Zone(low, high, open_low, open_high)


def _edge(x_R: np.ndarray, slack_CR: np.ndarray, usable_R: np.ndarray, top: int, step: int) -> tuple[float, bool]:
    """Walk from the best rate until one is not usable; the edge lies where the first condition breaks."""
    i = top
    while 0 <= i + step < len(x_R) and usable_R[i + step]:
        i += step
    j = i + step
    if not 0 <= j < len(x_R):
        return float(10 ** x_R[i]), True
    broken_C = slack_CR[:, j] < 0
    here_C, there_C = slack_CR[broken_C, i], slack_CR[broken_C, j]
    share = float(np.min(here_C / (here_C - there_C)))
    return float(10 ** (x_R[i] + share * (x_R[j] - x_R[i]))), False


def peak_rate(rates: Sequence[float], gains: Sequence[float]) -> tuple[float, str]:
    """Estimate the best learning rate: the vertex of the parabola, in log r, through the best rate and its neighbours.

    Returns:
      The rate and "", or the end of the grid and the bound it is ("at most" at the low end, "at least" at the
      high one) if the best rate tried is there; nan where nothing was gained.

    >>> rate, bound = peak_rate([1e-4, 1e-3, 1e-2], [0.5, 1.0, 0.5])
    >>> round(rate, 9), bound
    (0.001, '')
    >>> peak_rate([1e-4, 1e-3], [0.5, 1.0])
    (0.001, 'at least')
    """
    gain_R, x_R = _floored(gains), np.log10(np.asarray(rates, np.float64))
    i = int(np.argmax(gain_R))
    if gain_R[i] <= 0:
        return math.nan, ""
    if i in (0, len(gain_R) - 1):
        bound = "unknown" if len(gain_R) == 1 else "at most" if i == 0 else "at least"
        return float(rates[i]), bound
    left, right = x_R[i] - x_R[i - 1], x_R[i + 1] - x_R[i]
    fall, drop = (gain_R[i] - gain_R[i - 1]) / left, (gain_R[i] - gain_R[i + 1]) / right
    # Newton's form of the parabola: its slope is `fall` at the middle of the left piece and -`drop` at that of the
    # right one, and 0 in between, as the slope of a parabola is linear. `argmax` takes the first of equals: fall > 0.
    x = x_R[i] - left / 2 + (left + right) / 2 * fall / (fall + drop)
    return float(10**x), ""


def _floored(gains: Sequence[float]) -> np.ndarray:
    gain_R = np.asarray(gains, np.float64)
    return np.where(np.isfinite(gain_R), np.maximum(gain_R, 0.0), 0.0)
