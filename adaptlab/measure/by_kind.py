"""Several measurements as one, where domains have batches of several kinds."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from adaptlab.measure.measurement import Measurement

__all__ = ["by_kind"]


def by_kind(measurements: Mapping[type, Measurement]) -> Measurement:
    """Return the measurement that gives each batch to the one for its type; it reports only what was measured.

    Args:
      measurements: `{class of the batches: measurement}`.

    Raises:
      TypeError: when updated with a batch of another class; names those there are.
    """

    def init() -> dict[str, Any]:
        return {kind.__name__: (jnp.zeros(()), one.init()) for kind, one in measurements.items()}

    def update(state: dict[str, Any], params: Any, batch: Any) -> dict[str, Any]:
        kind = type(batch)
        if kind not in measurements:
            known = sorted(one.__name__ for one in measurements)
            raise TypeError(f"Batches of {kind.__name__} are not measured here; those of {known} are.")
        batches, own = state[kind.__name__]
        return state | {kind.__name__: (batches + 1.0, measurements[kind].update(own, params, batch))}

    def finish(state: dict[str, Any]) -> dict[str, float]:
        found: dict[str, float] = {}
        for kind, one in measurements.items():
            batches, own = state[kind.__name__]
            found |= one.finish(own) if batches > 0 else {}
        return found

    return Measurement(init, update, finish)
