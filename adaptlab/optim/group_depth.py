"""Parameter groups by depth: discriminative rates, gradual unfreezing, frozen lower layers."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import tree
from adaptlab.config import Traced
from adaptlab.optim.group_rules import everywhere, first_update
from adaptlab.optim.groups import Groups

__all__ = ["Layering", "Places", "by_depth", "freeze_below", "gradual_unfreezing", "layering"]

PyTree = Any


class Places(NamedTuple):
    """Where each leaf of a delta lies; trees of float32 NumPy arrays that broadcast to their leaves.

    Attributes:
      layer: the layer's number in its stack, from 0; -1 for the embeddings, infinity for what lies above the layers.
      distance: how many layers lie between it and the top: 0 for the top layer and what lies above it, L - 1 for
        layer 0, L for the embeddings. In a delta without layers the embeddings are one step below the rest.
    """

    layer: PyTree
    distance: PyTree


Layering = Callable[[PyTree], Places]


def layering(
    *,
    stacked: str = r"(?P<stack>(?:.*/)?layers)/.*",
    numbered: str = r"(?:.*?/)?(?:[^/]*_)?(?P<layer>\d+)/.*",
    bottom: str = r"(?:.*/)?[^/]*embed[^/]*(?:/.*)?",
) -> Layering:
    """Say which leaves are layers, which lie below them, and that all others (final norm, head) lie above.

    Patterns are regular expressions, matched against whole `/`-joined paths of the delta in the order of the arguments.
    A tied embedding is an embedding, although it is the head too.

    Args:
      stacked: leaves whose leading axis is the layer axis. The group `stack` names the stack: several (an encoder's,
        a decoder's) are counted side by side, each from its own top.
      numbered: layers that stand one by one, as `dense_0`; the group `layer` is the number.
      bottom: the embeddings.

    Raises:
      ValueError: when a delta is placed, if the leaves of a stack do not have the same leading axis.
    """

    def place(delta: PyTree) -> Places:
        flat = tree.flatten(delta)
        depth: dict[str, int] = {}
        layer = {path: _layer(path, x, depth) for path, x in flat.items()}
        distance = {p: np.maximum(depth.get(s, 0) - 1 - n, 0) for p, (s, n) in layer.items() if not np.any(n < 0)}
        lowest = max((float(d.max(initial=0)) for d in distance.values()), default=-1.0) + 1.0
        return Places(
            tree.map_with_path(lambda path, _: _array(layer[path][1]), delta),
            tree.map_with_path(lambda path, _: _array(distance.get(path, lowest)), delta),
        )

    def _layer(path: str, x: Any, depth: dict[str, int]) -> tuple[str, Any]:
        """Return a leaf's stack and layer numbers, and note the stack's depth."""
        if match := re.fullmatch(stacked, path):
            stack = match["stack"]
            if not x.shape or depth.setdefault(stack, x.shape[0]) != x.shape[0]:
                raise ValueError(
                    f"{path} of shape {x.shape} is not stacked over the {depth.get(stack, 'same')} layers of "
                    f"{stack!r}; give layering() a `stacked` pattern that names the stacked leaves only."
                )
            return stack, np.arange(x.shape[0]).reshape(-1, *[1] * (len(x.shape) - 1))
        if match := re.fullmatch(numbered, path):
            depth[""] = max(depth.get("", 0), int(match["layer"]) + 1)
            return "", np.asarray(int(match["layer"]))
        return "", np.asarray(-1.0 if re.fullmatch(bottom, path) else np.inf)

    return place


def by_depth(factor: Traced = 2.6, *, layers: Layering | None = None) -> Groups:
    """Discriminative rates: η_{l-1} = η_l / factor (ULMFiT, arXiv:1801.06146, sec. 3.2).

    The top layer has the whole rate, and so have the final norm and the head; each layer below divides it once
    more, and the embeddings once more than the first layer.

    Args:
      factor: 2.6 in the paper; 1 treats all alike.
      layers: what lies where; by default `layering()`.
    """
    place = layers or layering()

    def rate(delta: PyTree) -> PyTree:
        return jax.tree.map(lambda d: jnp.power(jnp.asarray(factor, jnp.float32), -d), place(delta).distance)

    return everywhere()._replace(rate=rate)


def gradual_unfreezing(every: Traced | None = None, *, layers: Layering | None = None) -> Groups:
    """Unfreeze one layer at a time, from the top down (ULMFiT, arXiv:1801.06146, sec. 3.3).

    Final norm, head and top layer train at once, the layer below from update round(every · total_steps) on, the
    next from round(2 · every · total_steps), and the embeddings last. What delta does not have is not waited for:
    its highest layer trains at once.

    Args:
      every: the fraction of all updates between two layers: 1 / epochs is the paper's one layer an epoch. By
        default 1 / (number of groups), so that each trains for an equal share before the next starts. Layers that
        would start at the end never train.
      layers: what lies where; by default `layering()`.
    """
    place = layers or layering()

    def start(delta: PyTree, total_steps: int) -> PyTree:
        distance = place(delta).distance
        present = np.unique(np.concatenate([d.ravel() for d in jax.tree.leaves(distance)] or [np.zeros(0)]))
        share = 1.0 / max(1, present.size) if every is None else every
        return jax.tree.map(lambda d: first_update(share, np.searchsorted(present, d) * total_steps), distance)

    return everywhere()._replace(start=start)


def freeze_below(layer: Traced, *, layers: Layering | None = None) -> Groups:
    """Never train the layers whose number is below `layer`, nor the embeddings.

    `freeze_below(0)` freezes the embeddings only, `freeze_below(L)` all layers.

    Args:
      layer: the first layer that trains, counted from 0 at the bottom.
      layers: what lies where; by default `layering()`.
    """
    place = layers or layering()

    def start(delta: PyTree, total_steps: int) -> PyTree:
        del total_steps
        xp = jnp if isinstance(layer, jax.Array) else np
        return jax.tree.map(lambda n: xp.where(n < layer, np.float32(np.inf), np.float32(0)), place(delta).layer)

    return everywhere()._replace(start=start)


def _array(x: Any) -> np.ndarray:
    return np.asarray(x, np.float32)
