"""Durations carry a unit; code below sees steps."""

import math
from typing import NamedTuple

__all__ = ["Duration", "duration"]


class Duration(NamedTuple):
    """An amount of training in one unit."""

    unit: str
    amount: float

    def in_steps(self, *, batch_size: int, length: int, rows: int) -> int:
        """Return the number of updates that covers the duration, rounded up.

        Args:
          batch_size: rows per update.
          length: tokens per row.
          rows: rows of the training set, for epochs.
        """
        per_step = {
            "steps": 1.0,
            "examples": batch_size,
            "tokens": batch_size * length,
            "epochs": batch_size / rows,
        }[self.unit]
        return math.ceil(self.amount / per_step - 1e-9)


def duration(
    *,
    steps: float | None = None,
    examples: float | None = None,
    tokens: float | None = None,
    epochs: float | None = None,
) -> Duration:
    """Return a duration from exactly one unit.

    Raises:
      ValueError: none or several are given, or the amount is not positive.

    >>> duration(tokens=10_000).in_steps(batch_size=4, length=128, rows=1000)
    20
    """
    given = {"steps": steps, "examples": examples, "tokens": tokens, "epochs": epochs}
    given = {unit: amount for unit, amount in given.items() if amount is not None}
    if len(given) != 1:
        raise ValueError(f"A duration needs exactly one of steps, examples, tokens and epochs, not {given or 'none'}.")
    ((unit, amount),) = given.items()
    if amount <= 0:
        raise ValueError(f"A duration of {amount} {unit} is not positive.")
    return Duration(unit, amount)
