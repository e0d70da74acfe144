"""Products of activations with weights, and where activations are on a mesh.

Letters: B batch, T time, D in, F out, H heads, K head width, t devices of `tensor`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaptlab import leaf
from adaptlab.shard import computing_placement, constrain, gather

__all__ = ["Fanned", "activations", "dot", "dot_rows", "fan_out", "split_heads"]


def activations(x: jax.Array, last: str | None) -> jax.Array:
    """Say where activations `[B, D]` or `[B, T, D]` are, D having the logical name `last`; others are left alone."""
    leading = {2: ("batch",), 3: ("batch", "time")}.get(x.ndim)
    return x if leading is None else constrain(x, (*leading, last))


def split_heads(y_BTF: jax.Array, heads: int, axis: str) -> jax.Array:
    """Return `[B, T, H, K]` from `[B, T, H·K]`; `axis` is the logical name of H."""
    y_BTHK = y_BTF.reshape(*y_BTF.shape[:-1], heads, -1)
    return constrain(y_BTHK, ("batch", "time", axis, None))


class Fanned(NamedTuple):
    """Activations that several products read, with a copy of their own for each device of `tensor` (t of them)."""

    x_BTD: jax.Array
    copies_tBTD: jax.Array


def fan_out(x_BTD: jax.Array) -> Any:
    """Say that the products that follow split their outputs over `tensor`, and share their input.

    Each of them gives the input a gradient of which every device has a summand (arXiv:1909.08053, fig. 3, operator f).
    With one copy of the input to a device, those of all products are added before the devices add theirs: one
    all-reduce for query, key and value instead of three. Elsewhere, and off a mesh, nothing changes.
    """
    placement = computing_placement()
    parts = 1 if placement is None else placement.mesh.shape["tensor"]
    if parts == 1 or x_BTD.ndim != 3:
        return x_BTD
    copies = jnp.broadcast_to(x_BTD[None], (parts, *x_BTD.shape))
    return Fanned(x_BTD, constrain(copies, ("copies", "batch", "time", "embed")))


def dot(given: Any, weight_DF: Any, axes: tuple[str | None, str | None]) -> jax.Array:
    """x W; x may be `fan_out`'s, and `axes` are the logical names of W's two axes."""
    if not isinstance(given, Fanned):
        return dot_rows(given, weight_DF)
    if _in_columns(weight_DF):
        return _by_device(given.copies_tBTD, weight_DF, axes)
    return dot_rows(given.x_BTD, weight_DF)


def _in_columns(weight: Any) -> bool:
    """Whether a part of what a weight consists of is all there is to know of a part of its columns."""
    if isinstance(weight, leaf.LowRank | leaf.Scaled):
        return _in_columns(weight.w)
    if isinstance(weight, leaf.Quantized):
        return not isinstance(weight.absmax, leaf.Scales)  # these are in groups that cross columns
    return isinstance(weight, leaf.Affine) or not leaf.is_node(weight)


def _by_device(copies_tBTD: jax.Array, weight: Any, axes: tuple[str | None, ...]) -> jax.Array:
    """x W `[B, T, F]` from a copy of x per device of `tensor`, each with its columns of W."""
    parts = copies_tBTD.shape[0]

    def split(w: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        if axes[1] not in names:
            return w
        at = names.index(axes[1])
        own = jnp.moveaxis(w.reshape(*w.shape[:at], parts, w.shape[at] // parts, *w.shape[at + 1 :]), at, 0)
        return gather(own, ("copies", *names[:at], None, *names[at + 1 :]))  # so that the gradient goes to its rest

    leaves, structure = jax.tree.flatten(leaf.map_arrays(split, weight, axes))
    mapped = [0 if new.ndim > old.ndim else None for new, old in zip(leaves, jax.tree.leaves(weight), strict=True)]

    def part(x: jax.Array, *arrays: jax.Array) -> jax.Array:
        return dot_rows(x, jax.tree.unflatten(structure, arrays))

    y_tBTf = jax.vmap(part, in_axes=(0, *mapped))(copies_tBTD, *leaves)
    return jnp.moveaxis(y_tBTf, 0, 2).reshape(*y_tBTf.shape[1:3], -1)


def dot_rows(x: jax.Array, weight: Any, transpose: bool = False) -> jax.Array:
    """`leaf.dot`; where a mesh splits rows, row by row: `[B, T]` merged in one axis would gather the tokens of each."""
    placement = computing_placement()
    if placement is None or placement.mesh.shape.get("context", 1) == 1 or x.ndim < 3:
        return leaf.dot(x, weight, transpose=transpose)
    return jax.vmap(lambda row: leaf.dot(row, weight, transpose=transpose))(x)
