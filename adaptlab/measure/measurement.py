"""What a measurement is: a monoid over batches."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

__all__ = ["Measurement", "Probe", "make_probe"]

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
        pending = {name: [one(batch, *args) for batch in part] for name, part in batches.items()}
        metrics = {}
        for name, states in pending.items():
            total = jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64), axis=0), *jax.device_get(states))
            metrics |= {f"{name}/{metric}": value for metric, value in measurement.finish(total).items()}
        return metrics

    return probe
