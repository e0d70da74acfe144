"""What the runs of a program measure of themselves: held-out text and, if wanted, their updates."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from adaptlab import hosts
from adaptlab.measure import make_probe, make_slot_probe
from adaptlab.measure.update_probe import make_update_probe, make_update_slot_probe
from adaptlab.study.lab import Lab
from adaptlab.train import How, Program, SlotProbe, over_slots, reading

__all__ = ["beginning_probe", "run_probe", "slots_probe"]


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


def beginning_probe(
    probe: Callable[[Any, Any, Any], dict[str, float]], bind: Callable[[Any, Any, Any], Any]
) -> Callable[[Any, Any, Any], dict[str, float]]:
    """Return the same for how runs begin: what is equal bit by bit, often the base itself, is measured once.

    To compare, all of a delta is read. Where arrays are not in the host's memory that may take longer than to measure
    it: there the probe is returned as it is.

    Args:
      probe: `(numbers, base, delta) -> {metric: value}`, always of the same base.
      bind: `(numbers, base, delta) -> params`, which is all that the probe sees of numbers.
    """
    if jax.default_backend() != "cpu" or hosts.count() > 1:
        return probe
    known: dict[str, dict[str, float]] = {}

    def once(numbers: Any, base: Any, delta: Any) -> dict[str, float]:
        digest = _digest((_read(bind, numbers, base, delta), delta))
        if digest not in known:
            known[digest] = probe(numbers, base, delta)
        return dict(known[digest])

    return once


def _read(bind: Callable[[Any, Any, Any], Any], numbers: Any, base: Any, delta: Any) -> dict[str, Any]:
    """Those of the numbers that a model depends on: not a learning rate, but LoRA's alpha."""
    program = jax.make_jaxpr(bind)(numbers, base, delta).jaxpr
    read = {id(x) for step in program.eqns for x in step.invars} | {id(x) for x in program.outvars}
    return {name: numbers[name] for name, x in zip(sorted(numbers), program.invars, strict=False) if id(x) in read}


def _digest(arrays: Any) -> str:
    digest = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(arrays):
        digest.update(f"{path} {x.shape} {x.dtype}".encode())
        digest.update(np.ascontiguousarray(jax.device_get(x)).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


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
