"""What every model is to the other rooms."""

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Model", "Pretrained"]

PyTree = Any


class Model(NamedTuple):
    """A model is three pure functions over a nested dict of weights.

    Attributes:
      init: `key -> params`, float32 arrays.
      apply: `(params, inputs, **named inputs) -> outputs`; a leaf of `params` is an array or a weight node
        (`adaptlab.leaf`).
      axes: `() -> axes`, the tree of `params` with a tuple of logical axis names for each array.
    """

    init: Callable[[Any], PyTree]
    apply: Callable[..., Any]
    axes: Callable[[], PyTree]


class Pretrained(NamedTuple):
    """A model with weights that somebody trained.

    Attributes:
      name: what the model is called in tables.
      model: its functions.
      load: `() -> params`, NumPy arrays, read and checked tensor by tensor.
      fingerprint: SHA-256 of the weight files, in hexadecimal.
      context: the longest sequence, in tokens, it was trained on.
    """

    name: str
    model: Model
    load: Callable[[], PyTree]
    fingerprint: str
    context: int
