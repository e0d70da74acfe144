"""What the runs of a program measure of themselves: held-out text and, if wanted, their updates."""

from collections.abc import Callable
from typing import Any

from adaptlab.measure import make_probe, make_slot_probe
from adaptlab.measure.update_probe import make_update_probe, make_update_slot_probe
from adaptlab.study.lab import Lab
from adaptlab.train import How, Program, SlotProbe, over_slots, reading

__all__ = ["run_probe", "slots_probe"]


def run_probe(lab: Lab, program: Program, base: Any) -> Callable[[Any, Any, Any], dict[str, float]]:
    """Return `(numbers, base, delta) -> {metric: value}`.

    Args:
      lab: has the text, and says what is measured of updates.
      program: binds the delta.
      base: what it is bound to.
    """
    held_out = make_probe(lab.measurement, _domains(lab), program.bind)
    if lab.updates is None:
        return held_out
    update = make_update_probe(lab.updates, program.bind, base)
    return lambda *args: held_out(*args) | update(*args)


def slots_probe(lab: Lab, program: Program, base: Any, how: How) -> SlotProbe:
    """Return the same for all slots of a program at once, see `adaptlab.train.fit_replicas`."""

    def bind(numbers: Any, base: Any, state: Any) -> Any:
        return program.bind(numbers, base, reading(state))

    def over(one: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        return over_slots(one, how, lab.placement)

    held_out = make_slot_probe(lab.measurement, _domains(lab), bind, over)
    if lab.updates is None:
        return held_out
    update = make_update_slot_probe(lab.updates, bind, over, base)

    def both(*args: Any) -> Callable[[int], dict[str, float]]:
        first, second = held_out(*args), update(*args)
        return lambda slot: first(slot) | second(slot)

    return both


def _domains(lab: Lab) -> dict[str, Any]:
    return {f"held_out/{name}": batches for name, batches in lab.held_out.items()}
