"""Constants of an adaptation, held beside the base's weights: arguments of a program, not part of it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from adaptlab import leaf, tree

__all__ = ["bare", "held", "hold"]


def hold(w: Any, name: str, arrays: Any) -> leaf.Held:
    """Return a weight with arrays beside it, on every device that the weight is on."""
    sharding = next((x.sharding for x in jax.tree.leaves(w) if not isinstance(x, Tracer)), None)
    if isinstance(sharding, NamedSharding):
        everywhere = NamedSharding(sharding.mesh, PartitionSpec())
        return leaf.Held(w, {name: jax.tree.map(lambda x: jax.device_put(x, everywhere), arrays)})
    return leaf.Held(w, {name: jax.tree.map(jnp.asarray, arrays)})


def held(w: Any) -> dict[str, Any]:
    """Return what is held beside a weight, by name."""
    found: dict[str, Any] = {}
    while isinstance(w, leaf.Held):
        found, w = {**w.arrays, **found}, w.w
    return found


def bare(base: Any) -> Any:
    """Return a base (or a weight) without what is held beside its weights."""

    def weight(_: str, w: Any) -> Any:
        while isinstance(w, leaf.Held):
            w = w.w
        return w

    return tree.map_with_path(weight, base, is_leaf=leaf.is_node)
