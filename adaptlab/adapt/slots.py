"""Choosing the slots of a model, and putting nodes there."""

from collections.abc import Mapping, Sequence
from typing import Any

from adaptlab import leaf, tree

__all__ = ["bind_slots", "choose_slots", "part"]


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


def part(nested: Any, path: str) -> Any:
    """Return what stands below a path of a nested dict."""
    for name in path.split("/"):
        nested = nested[name]
    return nested
