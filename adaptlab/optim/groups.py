"""Parameter groups: which part of a delta trains how fast, decays how much, and from when.

`group_depth` and `group_rules` make them, `group_table` shows them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaptlab.config import Traced

__all__ = ["Groups", "GroupsState", "add_decayed_weights", "bias_corrected", "mask_frozen", "scale_by_group"]

PyTree = Any


class Groups(NamedTuple):
    """How the parts of a delta train: three pure functions of the delta (arrays or shapes).

    Each returns the delta's tree with an array that broadcasts to its leaf: a scalar where the whole leaf is treated
    alike, `[L, 1, …]` where a stacked leaf is treated layer by layer. What is known before the trace is a NumPy array.

    Attributes:
      rate: `delta -> multipliers` of the learning rate, float32.
      decay: `delta -> multipliers` of the weight decay, float32. Decay is also multiplied by the rate, as it is in
        torch's parameter groups (decoupled decay takes the group's learning rate).
      start: `(delta, total_steps) -> updates`, float32: a leaf trains in update t (counted from 0) if and only if
        t ≥ start. 0 is at once, infinity never.
    """

    rate: Callable[[PyTree], PyTree]
    decay: Callable[[PyTree], PyTree]
    start: Callable[[PyTree, int], PyTree]


class GroupsState(NamedTuple):
    """The state of a transform that waits for groups to start.

    Attributes:
      count: int32, the updates done.
      inner: the state of the transform it wraps, or `()`.
    """

    count: jax.Array
    inner: Any = ()


def mask_frozen(groups: Groups | None, total_steps: int) -> optax.GradientTransformation:
    """Zero the gradients of what does not train yet: first in a chain, so that they do not count in a clipping norm.

    Not even NaN gets through. `None` is the identity.
    """
    if groups is None:
        return optax.identity()

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        started = _started(groups, updates, total_steps, state.count)
        return jax.tree.map(_only, started, updates), state._replace(count=state.count + 1)

    return optax.GradientTransformation(_init, update)


def scale_by_group(groups: Groups | None, total_steps: int) -> optax.GradientTransformation:
    """Multiply the updates by their group's rate; exactly 0 before the group's start, whatever the update is.

    It stands behind weight decay, before or after the learning rate. `None` is the identity.
    """
    if groups is None:
        return optax.identity()

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        started = _started(groups, updates, total_steps, state.count)
        scaled = jax.tree.map(lambda u, rate, on: _only(on, _times(u, rate)), updates, groups.rate(updates), started)
        return scaled, state._replace(count=state.count + 1)

    return optax.GradientTransformation(_init, update)


def add_decayed_weights(weight_decay: Traced, groups: Groups | None = None) -> optax.GradientTransformation:
    """u + λ · (the group's multiplier) · w. With `None`, `optax.add_decayed_weights(weight_decay)`."""
    if groups is None:
        return optax.add_decayed_weights(weight_decay)

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError("add_decayed_weights: update(updates, state, params) needs the params that decay.")

        def decayed(u: jax.Array, w: jax.Array, multiplier: Any) -> jax.Array:
            return u + _times(_times(w, multiplier), jnp.asarray(weight_decay, jnp.float32)).astype(u.dtype)

        return jax.tree.map(decayed, updates, params, groups.decay(updates)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def bias_corrected(
    core: optax.GradientTransformation, groups: Groups | None, total_steps: int
) -> optax.GradientTransformation:
    """Let what trains from update s on behave as if the state of `core` had begun at s. `None` gives `core` itself.

    In torch a parameter's step count begins with its first gradient. So Adam's moments are corrected
    (arXiv:1412.6980, alg. 1) by 1 - β^(t - s + 1), not by 1 - β^(t + 1), which would make the first update of a layer
    that starts late (1 - β₁)/√(1 - β₂) times too large: 3 times at the usual 0.9 and 0.999.

    Every array, and every layer of a stacked array whose layers start apart, runs `core` alone: on its own moments, and
    on the core's counts less the updates before s. Until s its moments stay what they were (what `core.init` made of
    it, or what was carried over) and its updates are 0. This is exact for every core that treats arrays one by one and
    whose integers count updates: Adam, its relatives, RMSProp, Lion, momentum (which has no count, and whose trace
    stays 0 until s). What belongs to no array and is no count (the key of a noise) is shared by all. A core that looks
    across arrays (a global norm) belongs outside. Where all starts are known to be 0, `core` runs as it is.

    Args:
      core: an Optax transform.
      groups: their starts count here, not their rates.
      total_steps: the number of updates.

    Raises:
      ValueError: when updating, if starts differ and the state of `core` for one array or one layer is not a part of
        its state for all.
    """
    if groups is None:
        return core

    def init(params: PyTree) -> GroupsState:
        return GroupsState(jnp.zeros((), jnp.int32), core.init(params))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        start = groups.start(updates, total_steps)
        run = core.update if _at_once(start) else _one_by_one(core, start, state.count)
        updates, inner = run(updates, state.inner, params)
        return updates, GroupsState(state.count + 1, inner)

    return optax.GradientTransformation(init, update)


def _init(params: PyTree) -> GroupsState:
    return GroupsState(jnp.zeros((), jnp.int32))


def _at_once(start: PyTree) -> bool:
    """Whether all starts are known, and known to be 0."""
    return all(isinstance(s, np.ndarray | np.generic) and not np.any(s) for s in jax.tree.leaves(start))


def _started(groups: Groups, like: PyTree, total_steps: int, count: jax.Array) -> PyTree:
    return jax.tree.map(lambda s: count.astype(jnp.float32) >= jnp.asarray(s), groups.start(like, total_steps))


def _only(on: Any, x: Any) -> jax.Array:
    # A choice, not a product: 0 times infinity is not 0.
    return jnp.where(on, x, jnp.zeros((), x.dtype))


def _times(x: jax.Array, multiplier: Any) -> jax.Array:
    """The product in float32 or wider, in x's dtype."""
    wide = x.dtype if x.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    return (x.astype(wide) * jnp.asarray(multiplier).astype(wide)).astype(x.dtype)


def _one_by_one(core: optax.GradientTransformation, start: PyTree, count: jax.Array) -> Callable[..., Any]:
    """Return the update of `core` in which each array, or layer of one, has its own start."""

    def update(updates: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        grads, structure = jax.tree.flatten(updates)
        weights = [jnp.zeros_like(g) for g in grads] if params is None else jax.tree.leaves(params)
        index = jax.tree.unflatten(structure, range(len(grads)))
        # The array each leaf of the state belongs to; -1 for what belongs to none.
        owner = optax.tree_map_params(core, lambda _, i: i, state, index, transform_non_params=lambda _: -1)
        owners, old = jax.tree.leaves(owner), jax.tree.leaves(state)
        if len(owners) != len(old):
            raise ValueError(
                f"bias_corrected: the core says of {len(owners)} of the {len(old)} arrays in its state whose they are; "
                f"use a core whose state optax.tree_map_params can map, or groups that all start at once."
            )
        # Only the shared part of this is used, and the compiler drops the rest.
        new = jax.tree.leaves(core.update(updates, state, params)[1])
        done = []
        for i, s in enumerate(jax.tree.leaves(start)):
            mine = [owner in (i, -1) for owner in owners]
            part = [x for x, m in zip(old, mine, strict=True) if m]
            shared = [o == -1 for o, m in zip(owners, mine, strict=True) if m]
            u, part = _run(core, jnp.asarray(s), count, grads[i], weights[i], part, shared)
            done.append(u)
            for j, x in zip((j for j, o in enumerate(owners) if o == i), part, strict=True):
                new[j] = x
        return jax.tree.unflatten(structure, done), jax.tree.unflatten(jax.tree.structure(state), new)

    return update


def _run(
    core: optax.GradientTransformation,
    start: jax.Array,
    count: jax.Array,
    grad: jax.Array,
    weight: jax.Array,
    state: Sequence[jax.Array],
    shared: Sequence[bool],
) -> tuple[jax.Array, list[jax.Array]]:
    """Run `core` on one array; return its update and its own new state leaves.

    Args:
      core: the transform.
      start: a scalar or `[L, 1, …]`.
      count: the updates done.
      grad: the array's gradient.
      weight: the array.
      state: the leaves of the core's state that are the array's or nobody's.
      shared: which of them are nobody's.
    """
    layered = start.size > 1
    wanted, structure = jax.tree.flatten(jax.eval_shape(core.init, weight[0] if layered else weight))
    per_layer = _per_layer([x.shape for x in wanted], state, shared, weight.shape, layered)

    def alone(s: jax.Array, g: jax.Array, w: jax.Array, leaves: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        on = count.astype(jnp.float32) >= s
        begun = [_less(x, count, s) if common else x for x, common in zip(leaves, shared, strict=True)]
        u, new = core.update(_only(on, g), jax.tree.unflatten(structure, begun), w)
        own = [(n, x) for n, x, common in zip(jax.tree.leaves(new), leaves, shared, strict=True) if not common]
        return _only(on, u), [jnp.where(on, n, x) for n, x in own]

    if not layered:
        return alone(start.reshape(()), grad, weight, list(state))
    mapped = jax.vmap(alone, in_axes=(0, 0, 0, [0 if layer else None for layer in per_layer]))
    u, new = mapped(start.reshape(-1), grad, weight, list(state))
    kept = [layer for layer, common in zip(per_layer, shared, strict=True) if not common]
    return u, [x if layer else x[0] for x, layer in zip(new, kept, strict=True)]


def _per_layer(
    wanted: Sequence[tuple[int, ...]],
    state: Sequence[jax.Array],
    shared: Sequence[bool],
    shape: tuple[int, ...],
    layered: bool,
) -> list[bool]:
    """Say which leaves of a state have a layer axis, given the shapes `core` wants for one layer (or one array)."""
    have = [x.shape for x in state]
    lead = shape[:1] if layered else ()
    # (1,) in both is a place that a factored core leaves unused.
    idle = [w == h and (common or h == (1,)) for w, h, common in zip(wanted, have, shared, strict=False)]
    if len(wanted) != len(have) or any(
        h != (*lead, *w) for w, h, unused in zip(wanted, have, idle, strict=True) if not unused
    ):
        raise ValueError(
            f"bias_corrected: for {'one layer of ' if layered else ''}an array of shape {shape} the core's state has "
            f"the shapes {list(wanted)}, but its share of the whole state has {have}; use a core that treats arrays "
            f"and layers one by one, or groups that all start at once."
        )
    return [layered and not unused for unused in idle]


def _less(x: jax.Array, count: jax.Array, start: jax.Array) -> jax.Array:
    """A count of updates less those of this training before `start`; anything else as it is."""
    if x.ndim or not jnp.issubdtype(x.dtype, jnp.signedinteger):
        return x
    return x - jnp.minimum(count.astype(jnp.float32), jnp.ceil(start)).astype(x.dtype)
