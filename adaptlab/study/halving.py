"""Successive halving: many runs at a small part of the budget, few to the end."""

import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from adaptlab import report

__all__ = ["Halving", "journal_value", "successive_halving"]

Key = TypeVar("Key", bound=Hashable)


class Halving(NamedTuple):
    """Where runs are compared, and which go on.

    Attributes:
      eta: η, one in η goes on.
      first: the share of the budget at which the first comparison is made.
      metric: what is compared, smaller is better; None is the target's held-out loss.
      reward: compares the gain in that metric over the base instead, larger is better, see `adaptlab.study.reward`;
        None compares the metric itself.
    """

    eta: int
    first: float
    metric: str | None
    reward: Literal["gain", "gain_per_parameter"] | None = None

    def rungs(self, total_steps: int, measure_every: int) -> list[int]:
        """Return the steps at which runs are compared: first · T · η^k, each raised to the next measurement."""
        found, share = [], self.first
        while share < 1.0 - 1e-9:
            found.append(measure_every * math.ceil(share * total_steps / measure_every - 1e-9))
            share *= self.eta
        return sorted({step for step in found if step < total_steps})

    def survivors(self, values: Mapping[Key, float | None]) -> set[Key]:
        """Return the best ⌈n/η⌉ of n; those that diverged (None or nan) last, and of equal ones the first."""

        def place(item: tuple[int, Key]) -> tuple[float, int]:
            value = values[item[1]]
            return (math.inf if value is None or math.isnan(value) else value, item[0])

        order = sorted(enumerate(values), key=place)
        return {key for _, key in order[: math.ceil(len(order) / self.eta)]}


def successive_halving(
    *,
    eta: int = 3,
    first: float = 0.04,
    metric: str | None = None,
    reward: Literal["gain", "gain_per_parameter"] | None = None,
) -> Halving:
    """Return the rule of successive halving (Jamieson and Talwalkar, arXiv:1502.07943, fig. 3).

    All runs go to the first rung, where they wait in their checkpoints; the best one in `eta` goes on to the next one,
    `eta` times as far, and so on to the end. Unlike in the asynchronous form (ASHA, arXiv:1810.05934), who goes on
    does not depend on the order in which runs arrive, so a sweep that was killed ends with the same runs.

    Args:
      eta: η, at least 2.
      first: the share of the budget at the first rung, in (0, 1).
      metric: what is compared, e.g. `"held_out/german_speeches/loss"`, smaller is better; None is the target's loss.
      reward: "gain" compares L(base) - L(run), L the metric, which must be a held-out one; "gain_per_parameter" divides
        it by the number of parameters that train. Larger is better. None compares the metric itself.

    Raises:
      ValueError: an `eta` below 2, a `first` outside (0, 1), or an unknown reward.
    """
    if eta < 2:
        raise ValueError(f"eta={eta} must be at least 2: one run in eta goes on.")
    if not 0 < first < 1:
        raise ValueError(f"first={first} must be between 0 and 1: it is a share of the training budget.")
    if reward not in (None, "gain", "gain_per_parameter"):
        raise ValueError(f"reward={reward!r} is not one of [None, 'gain', 'gain_per_parameter'].")
    return Halving(eta, first, metric, reward)


def journal_value(home: Path, step: int, metric: str) -> float | None:
    """Return what a run measured at a step, or None if it has not been there."""
    path = home / "journal.jsonl"
    rows = report.read_journal(path) if path.exists() else []
    values = [row.metrics[metric] for row in rows if row.step == step and metric in row.metrics]
    return values[0] if values else None
