"""Early stopping, decided inside the program: its patience is a number like any other, and the best state is kept."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaptlab.config import NonNegative, Positive

__all__ = ["EarlyStopping", "Watch", "early_stopping"]


class Watch(NamedTuple):
    """What early stopping remembers.

    Attributes:
      best: float32, the lowest value seen.
      best_step: int32, where.
      best_delta: the delta there.
      waited: int32, the measurements since then.
      stopped: whether training has ended.
    """

    best: jax.Array
    best_step: jax.Array
    best_delta: Any
    waited: jax.Array
    stopped: jax.Array


class EarlyStopping(NamedTuple):
    """When to stop.

    Attributes:
      init: `delta -> Watch`.
      observe: `(watch, value, step, delta) -> Watch`, after each measurement.
    """

    init: Callable[[Any], Watch]
    observe: Callable[[Watch, jax.Array, jax.Array, Any], Watch]


def early_stopping(*, patience: Positive = 3, min_delta: NonNegative = 0.0) -> EarlyStopping:
    """Stop once `patience` measurements in a row have not brought the value below its best by `min_delta`.

    The run then ends with the delta of its best measurement, and so does a run that was never stopped.

    Args:
      patience: measurements without improvement that end the run.
      min_delta: the least decrease that counts as one, in the value's unit.
    """

    def init(delta: Any) -> Watch:
        never = jnp.zeros((), jnp.int32)
        return Watch(jnp.full((), jnp.inf), never, jax.tree.map(jnp.copy, delta), never, jnp.zeros((), bool))

    def observe(watch: Watch, value: jax.Array, step: jax.Array, delta: Any) -> Watch:
        better = value < watch.best - min_delta  # never for a value that is not a number
        waited = jnp.where(better, 0, watch.waited + 1)

        def newer(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda x, y: jnp.where(better, x, y), new, old)

        return Watch(
            newer(value, watch.best),
            newer(step, watch.best_step),
            newer(delta, watch.best_delta),
            waited,
            watch.stopped | (waited.astype(jnp.float32) >= patience),
        )

    return EarlyStopping(init, observe)
