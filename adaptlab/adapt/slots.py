"""Choosing the slots of a model, and putting nodes there."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from adaptlab import leaf, tree
from adaptlab.adapt.lora import Init
from adaptlab.rng import stream_id

__all__ = ["Part", "below", "bind_slots", "choose_slots", "init_parts", "normal", "part_axes", "uniform"]


class Part(NamedTuple):
    """One array of a delta: its shape, its logical axes, and `(key, shape) -> array`."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Init


def init_parts(key: jax.Array, parts: Mapping[str, Part]) -> Any:
    """Return the delta of `{path: part}`. One key per path: one part more leaves the others' draws as they were."""
    drawn = {p: part.init(jax.random.fold_in(key, stream_id(p)), part.shape) for p, part in parts.items()}
    return tree.unflatten(drawn)


def part_axes(parts: Mapping[str, Part]) -> Any:
    """Return the axes of `{path: part}` as the tree of `init_parts`."""
    return tree.unflatten({path: part.axes for path, part in parts.items()})


def normal(deviation: float = 1.0) -> Init:
    """Return an initialiser of normal noise."""
    return lambda key, shape: deviation * jax.random.normal(key, shape)


def uniform(fan_in: int) -> Init:
    """Return an initialiser U(-1/√fan_in, 1/√fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def choose_slots(slots: Mapping[str, Any], kind: str, select: str | Sequence[str], factory: str) -> dict[str, Any]:
    """Return the slots of a kind whose paths the patterns match.

    Args:
      slots: `{path: slot}`, what the model declares.
      kind: what the factory adds, e.g. "residual".
      select: patterns of whole slot paths.
      factory: whose error it is.

    Raises:
      ValueError: the model has no such slot, or a pattern matches none.
    """
    fitting = {path: slot for path, slot in slots.items() if slot.kind == kind}
    if not fitting:
        there = {path: slot.kind for path, slot in slots.items()}
        raise ValueError(
            f"{factory} adds computation at slots of kind {kind!r} and the model has none; it declares {there}. "
            f"Choose an adaptation of kernels instead, e.g. lora."
        )
    return {path: fitting[path] for path, i in tree.select(fitting, select).items() if i is not None}


def bind_slots(base: Any, nodes: Mapping[str, Any]) -> Any:
    """Return the base with nodes at slots, its own leaves as they are.

    Raises:
      ValueError: a slot is taken; names it.
    """
    flat = tree.flatten(base, leaf.is_node)
    if taken := sorted(nodes.keys() & flat.keys()):
        raise ValueError(
            f"The slots {taken} already hold {[type(flat[path]).__name__ for path in taken]}; each slot holds one "
            f"node: select other slots, or combine saved adapters with fusion."
        )
    return tree.unflatten(flat | dict(nodes))


def below(nested: Any, path: str) -> Any:
    """Return what stands at a path of a nested dict."""
    for name in path.split("/"):
        nested = nested[name]
    return nested
