"""The logical axes of the arrays inside a weight node, from those of the array that it stands for."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax

from adaptlab.leaf.decomposed import Decomposed
from adaptlab.leaf.fake_quantized import FakeQuantized
from adaptlab.leaf.held import Blend, Held
from adaptlab.leaf.low_rank import Factored, LowRank
from adaptlab.leaf.quantized import Affine, Quantized
from adaptlab.leaf.rows import Rows
from adaptlab.leaf.scaled import Scaled
from adaptlab.leaf.sparse import Added, SparseDelta
from adaptlab.leaf.subspace import Projected
from adaptlab.leaf.trained_layers import TrainedLayers
from adaptlab.leaf.vera import VectorScaled
from adaptlab.leaf.weight import Weight, is_node

__all__ = ["map_arrays"]

Axes = tuple[str | None, ...]
Map = Callable[[Any, Axes], Any]


def map_arrays(f: Map, weight: Weight, names: Axes) -> Weight:
    """Return the weight with `f(array, axes)` in place of each of its arrays.

    Args:
      f: takes an array and the logical names of its axes.
      weight: an array, or a node of any nesting. What is not known of a node stays as it is.
      names: the logical axes of the array that the weight stands for, leading ones included.
    """
    if not is_node(weight):
        return f(weight, names)
    if isinstance(weight, Quantized | Affine):
        return jax.tree.map(f, weight, weight.axes(names))
    below = {
        field: map_arrays(f, getattr(weight, field), names)
        for field in _BELOW.get(type(weight), ())
        if getattr(weight, field) is not None
    }
    beside = {
        field: f(getattr(weight, field), axes)
        for field, axes in _BESIDE.get(type(weight), lambda *names: {})(*names).items()
        if getattr(weight, field) is not None
    }
    return replace(weight, **below, **beside)


_BELOW: dict[type, tuple[str, ...]] = {
    Added: ("w", "delta"),
    Blend: ("w", "changed", "start"),
    Decomposed: ("v",),
    Factored: ("w",),
    FakeQuantized: ("w",),
    Held: ("w",),
    LowRank: ("w",),
    Projected: ("w",),
    Rows: ("w",),
    Scaled: ("w",),
    SparseDelta: ("w",),
    TrainedLayers: ("w",),
    VectorScaled: ("w",),
}
"""The fields that have the axes of the whole."""

_BESIDE: dict[type, Callable[..., dict[str, Axes]]] = {
    Decomposed: lambda *names: {"magnitude": (*names[:-2], names[-1])},
    Factored: lambda *names: {"a": (*names[:-1], "rank"), "b": (*names[:-2], "rank", names[-1])},
    LowRank: lambda *names: {"a": (*names[:-1], "rank"), "b": (*names[:-2], "rank", names[-1])},
    Rows: lambda *names: {"rows": (None, names[-1])},
    Scaled: lambda *names: {"input": names[:-1], "output": (*names[:-2], names[-1])},
    VectorScaled: lambda *names: {"d": (*names[:-2], "rank"), "b": (*names[:-2], names[-1])},
}
"""The fields with axes of their own."""
