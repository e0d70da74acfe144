"""Parameter groups: which part of a delta trains how fast, decays how much, and from when."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from adaptlab.config import Traced

__all__ = ["Groups", "add_decayed_weights", "bias_corrected", "mask_frozen", "scale_by_group"]

PyTree = Any


class Groups(NamedTuple):
    """How the parts of a delta train: three pure functions of the delta (arrays or shapes).

    Each returns the delta's tree with an array that broadcasts to its leaf: a scalar where the whole leaf is treated
    alike, `[L, 1, …]` where a stacked leaf is treated layer by layer.

    Attributes:
      rate: `delta -> multipliers` of the learning rate, float32.
      decay: `delta -> multipliers` of the weight decay, float32. The decay is also multiplied by the rate, as it is
        in torch's parameter groups (decoupled decay takes the group's learning rate).
      start: `(delta, total_steps) -> updates`, float32: a leaf trains in update t (counted from 0) if and only if
        t ≥ start. 0 is at once, infinity never.
    """

    rate: Callable[[PyTree], PyTree]
    decay: Callable[[PyTree], PyTree]
    start: Callable[[PyTree, int], PyTree]


def mask_frozen(groups: Groups | None, total_steps: int) -> optax.GradientTransformation:
    """Zero the gradients of what does not train yet: first in a chain, so that they do not count in a clipping norm.

    Not even NaN gets through. `None` is the identity.
    """
    raise NotImplementedError


def scale_by_group(groups: Groups | None, total_steps: int) -> optax.GradientTransformation:
    """Multiply the updates by their group's rate; exactly 0 before the group's start, whatever the update is.

    It stands after weight decay and beside the learning rate. `None` is the identity.
    """
    raise NotImplementedError


def add_decayed_weights(weight_decay: Traced, groups: Groups | None = None) -> optax.GradientTransformation:
    """u + λ · (the group's multiplier) · w. With `None`, `optax.add_decayed_weights(weight_decay)`."""
    raise NotImplementedError


def bias_corrected(
    core: optax.GradientTransformation, groups: Groups | None, total_steps: int
) -> optax.GradientTransformation:
    """Let what trains from update s on behave as if the state of `core` had begun at s. `None` gives `core` itself.

    Args:
      core: any Optax transform that treats every array on its own (Adam, Lion, RMSProp, momentum …).
      groups: the groups, whose starts count.
      total_steps: the number of updates.
    """
    raise NotImplementedError
