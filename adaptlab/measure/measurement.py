"""What a measurement is: a monoid over batches."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from adaptlab.shard import fetch

__all__ = ["Measurement", "Probe", "make_probe", "make_slot_probe"]

Probe = Callable[[Any], dict[str, float]]
"""`params -> {metric: value}`."""


class Measurement(NamedTuple):
    """A quantity that adds up over batches.

    Attributes:
      init: `() -> state`, the neutral element. States merge by leaf-wise addition.
      update: `(state, params, batch) -> state`, pure.
      finish: `state -> {metric: value}`; gets NumPy float64 leaves.
    """

    init: Callable[[], Any]
    update: Callable[[Any, Any, Any], Any]
    finish: Callable[[Any], dict[str, float]]


def make_probe(
    measurement: Measurement,
    domains: Mapping[str, Iterable[Any]],
    bind: Callable[..., Any] = lambda params: params,
) -> Callable[..., dict[str, float]]:
    """Return `probe(*args) -> {"<domain>/<metric>": value}`: one measurement over fixed batches of each domain.

    All domains share one compiled program, and batches are added up in float64 on the host.

    Args:
      measurement: what to measure.
      domains: `{name: batches}`, of one shape.
      bind: `args -> params`, traced, e.g. how a base and a delta become a model.
    """

    @jax.jit
    def one(batch: Any, *args: Any) -> Any:
        return measurement.update(measurement.init(), bind(*args), batch)

    batches = {name: list(part) for name, part in domains.items()}

    def probe(*args: Any) -> dict[str, float]:
        totals = _totals({name: [one(batch, *args) for batch in part] for name, part in batches.items()})
        return _finished(measurement, totals)

    return probe


def make_slot_probe(
    measurement: Measurement,
    domains: Mapping[str, Iterable[Any]],
    bind: Callable[..., Any],
    over_slots: Callable[[Callable[[Any, Any], Any]], Callable[[Any, Any], Any]],
) -> Callable[..., Callable[[int], dict[str, float]]]:
    """Return `probe(numbers_S, states_S, active_S, base) -> slot -> metrics`: `make_probe` for S models at once.

    Args:
      measurement: what to measure.
      domains: `{name: batches}`, of one shape.
      bind: `(numbers, base, state) -> params`.
      over_slots: lifts `(each, shared) -> result` to slots, see `adaptlab.train.over_slots`.
    """

    def one(each: Any, shared: Any) -> Any:
        numbers, state, active = each
        batch, base = shared

        def measured() -> Any:
            return measurement.update(measurement.init(), bind(numbers, base, state), batch)

        return jax.lax.cond(active, measured, measurement.init)

    many = jax.jit(over_slots(one))
    batches = {name: list(part) for name, part in domains.items()}

    def probe(numbers_S: Any, states_S: Any, active_S: Any, base: Any) -> Callable[[int], dict[str, float]]:
        each = numbers_S, states_S, active_S
        totals = _totals({name: [many(each, (batch, base)) for batch in part] for name, part in batches.items()})
        return lambda slot: _finished(measurement, jax.tree.map(lambda x: x[slot], totals))

    return probe


def _totals(pending: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Add up the states of each domain's batches, in float64 on the host."""
    return {
        name: jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64), axis=0), *fetch(states))
        for name, states in pending.items()
    }


def _finished(measurement: Measurement, totals: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{name}/{metric}": value
        for name, total in totals.items()
        for metric, value in measurement.finish(total).items()
    }
