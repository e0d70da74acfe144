"""How a layer reads its leaves, of which any may be a node: where they rest, and where it computes.

Linen gives scopes, initialisation, scan and remat. `param` is called only while initialising: afterwards a leaf may be
a node, whose shape is not the kernel's, and `get_variable` reads it as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from adaptlab import leaf, tree
from adaptlab.shard import computing_placement, constrain_rest, gather

__all__ = ["GATHERED", "gathered", "on_many", "read", "refuse_unread", "slot", "stored"]

GATHERED = "gathered"
"""The name of gathered weights, for rematerialisation: they are gathered again rather than kept."""


class _Named(nn.Partitioned):
    """A new weight with the names of its axes, which are not a mesh's: Linen must not look for them on one."""

    def unbox(self, apply_constraint: bool = False) -> Any:
        del apply_constraint
        return self.value


def stored(module: nn.Module, name: str, init: Callable[..., Any], shape: tuple[int, ...], axes: tuple) -> Any:
    """Return the leaf `name` of a module where it rests: made from `init` while initialising, as bound otherwise."""
    if module.is_initializing():
        module.param(name, lambda *args: _Named(init(*args), axes), shape)
    return nn.unbox(module.get_variable("params", name))


def read(
    module: nn.Module,
    name: str,
    init: Callable[..., Any],
    shape: tuple[int, ...],
    axes: tuple,
    dtype: Any = None,
) -> Any:
    """Return the leaf `name` of a module where it computes, see `gathered`."""
    return gathered(stored(module, name, init, shape, axes), axes, dtype)


def gathered(weight: Any, axes: tuple[str | None, ...], dtype: Any = None) -> Any:
    """Bring a weight from where it rests to where it computes: on a mesh with `fsdp`, one layer's slice at a time.

    Its gradient goes the same way back. (So this is done where a layer reads its slice, inside the scan and what is
    rematerialised: neither the whole stack nor a gathered layer outlives its use.)

    Args:
      weight: an array or a node; of a node every array travels by itself, and nothing is merged.
      axes: the logical names of the matrix's axes.
      dtype: what the weight will be cast to when it is read, so that it may travel in fewer bits; None says nothing.
    """
    if not on_many():
        return weight
    plain = not leaf.is_node(weight) or (isinstance(weight, leaf.LowRank) and not leaf.is_node(weight.w))

    def travel(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        x = constrain_rest(x, names)
        if plain and dtype is not None:
            x = x.astype(dtype)
        return checkpoint_name(gather(x, names), GATHERED)

    return leaf.map_arrays(travel, weight, axes)


def on_many() -> bool:
    """Whether what is computed now is computed on several devices."""
    placement = computing_placement()
    return placement is not None and placement.mesh.size > 1


def slot(module: nn.Module, name: str) -> Any:
    """Return the node bound at a slot of a module, or None."""
    return module.get_variable("params", name) if module.has_variable("params", name) else None


def refuse_unread(params: Any, axes: Any, slots: Mapping[str, Any]) -> None:
    """Raise for leaves that no layer reads: a misspelt slot would otherwise train nothing, silently.

    Raises:
      ValueError: names the paths, and the slots there are.
    """
    known = tree.flatten(axes, lambda x: isinstance(x, tuple)).keys() | slots.keys()
    if unread := sorted(tree.flatten(params, leaf.is_node).keys() - known):
        raise ValueError(f"Nothing of the model reads {unread}. It has the slots {sorted(slots)}.")
