"""What a token budget costs: time, energy and emissions. All of it estimates."""

from typing import NamedTuple

__all__ = ["Budget", "budget"]


class Budget(NamedTuple):
    """Of a run.

    Attributes:
      tokens: to train on.
      steps: updates.
      hours: of wall-clock time.
      chip_hours: of all chips.
      energy: kilowatt hours, of chips, and what the building adds.
      carbon: kilograms of CO2 equivalent of that energy.
    """

    tokens: float
    steps: int
    hours: float
    chip_hours: float
    energy: float
    carbon: float


def budget(
    tokens: float,
    *,
    tokens_per_step: int,
    step_time: float,
    chips: int,
    power: float,
    pue: float,
    grid: float,
) -> Budget:
    """energy = chips · power · PUE · hours; carbon = energy · grid (operational emissions, arXiv:2104.10350, eq. 1-2).

    Neither hosts nor network nor the making of the chips are in it.

    Args:
      tokens: the budget.
      tokens_per_step: of one update.
      step_time: seconds of one update.
      chips: how many.
      power: watts of one chip.
      pue: power usage effectiveness of the data centre, at least 1.
      grid: kilograms of CO2 equivalent per kilowatt hour.

    Raises:
      ValueError: a negative number, or a PUE below 1.
    """
    if pue < 1:
        raise ValueError(f"pue={pue} must be at least 1: the whole centre's energy over that of its computers.")
    for name, value in (("tokens", tokens), ("power", power), ("grid", grid)):
        if value < 0:
            raise ValueError(f"{name}={value} must not be negative.")
    steps = -(-int(tokens) // tokens_per_step)
    hours = steps * step_time / 3600
    energy = chips * power * pue * hours / 1000
    return Budget(tokens, steps, hours, chips * hours, energy, energy * grid)
