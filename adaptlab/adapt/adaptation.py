"""What an adaptation is: a triple of pure functions, as an optimiser is in Optax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaptlab import leaf, tree

__all__ = ["Adaptation", "axes_of", "count_trained", "in_full", "materialize", "prepared"]

PyTree = Any


class Adaptation(NamedTuple):
    """How a base model is changed.

    Attributes:
      init: `(key, base) -> delta`: what trains, and nothing else.
      bind: `(base, delta) -> params`: the base's paths, with arrays or weight nodes (`adaptlab.leaf`) as leaves. At
        `delta = init(key, base)` the bound model computes what the base computes.
      axes: `base_axes -> delta_axes`: the logical axis names of delta's arrays.
      sample: `(base, delta, key) -> params`: what a training step binds instead, where a method draws at random in
        every step (a mask, a noise); None where it does not.
      prepare: `base -> base'`: what is computed of the base once, before training, and never trains (a factorisation);
        None where nothing is. base' has the base's paths, its leaves may be weight nodes, and it stands wherever the
        other functions take a base. Saved deltas are bound to it again, so it must follow from the base alone: it takes
        no key, and no traced number may enter it, since all runs of a program share one.
      count: `(base, delta) -> number`: how many of delta's numbers are used and trained, where a mask leaves some out;
        only shapes of base and delta matter, and the method's own numbers are not traced there. None: all of delta.
    """

    init: Callable[[Any, PyTree], PyTree]
    bind: Callable[[PyTree, PyTree], PyTree]
    axes: Callable[[PyTree], PyTree]
    sample: Callable[[PyTree, PyTree, Any], PyTree] | None = None
    prepare: Callable[[PyTree], PyTree] | None = None
    count: Callable[[PyTree, PyTree], int] | None = None


def prepared(adaptation: Adaptation, base: PyTree) -> PyTree:
    """Return the base that an adaptation's `init` and `bind` take."""
    return base if adaptation.prepare is None else adaptation.prepare(base)


def count_trained(adaptation: Adaptation, base: PyTree, delta: PyTree) -> int:
    """Return how many parameters train: the size of delta, without what a mask leaves out.

    Args:
      adaptation: the method, of numbers that are not traced.
      base: prepared for it; it and the delta may be shapes.
      delta: what `init` returned.
    """
    return tree.count(delta) if adaptation.count is None else adaptation.count(base, delta)


def in_full(w: Any) -> jax.Array:
    """Return a copy of an array (NumPy or JAX) of the base to train: 16 bits in float32, or small updates are lost."""
    return jnp.array(w, jnp.float32) if w.dtype in (jnp.bfloat16, jnp.float16) else jnp.copy(w)


def materialize(params: PyTree) -> PyTree:
    """Replace every weight node by the array it stands for: a plain model's weights, for export and reference.

    `materialize(adaptation.bind(base, delta))` is what is called merging an adapter. It is not the training
    path: in low precision a small update is lost in the sum.
    """
    return tree.map_with_path(lambda _, x: leaf.dense(x), params, is_leaf=leaf.is_node)


def axes_of(base_axes: PyTree) -> dict[str, tuple[str | None, ...]]:
    """Return `{path: axis names}` of a tree of axis-name tuples."""
    return tree.flatten(base_axes, is_leaf=lambda x: isinstance(x, tuple))
