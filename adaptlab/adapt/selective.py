"""Selective fine-tuning: some of the base's own weights train, the others stay as they are."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation, axes_of, in_full

__all__ = ["anchors", "bitfit", "freeze_below", "layer_norm", "linear_probe", "selected"]

_BELOW = r"(?:.*/)?[^/]*embed[^/]*(?:/.*)?"
_RANGE = re.compile(r"(-?\d+)?:(-?\d+)?")


def selected(
    select: str | Sequence[str], *, layers: Sequence[int | None] | None = None, stack: str = "layers/.*"
) -> Adaptation:
    """Train the selected weights in full and nothing else; delta holds these weights, starting as copies.

    Of a stack `[L, …]` of which only `layers=[first, stop]` train, delta holds `[stop - first, …]`, at the weight's
    path below the name of the range ("2:4", or "2:" to the top), so that gradients, moments and saved files have the
    size of what trains; bind puts them back between the frozen layers, whose gradients are not computed.

    Args:
      select: patterns of whole `/`-joined paths of the base.
      layers: the first layer to train and the one behind the last, counted as Python slices are: null is the end, and
        negative numbers count from the top. None trains all.
      stack: the paths whose leading axis is the layer axis; others are not cut by `layers`.

    Raises:
      ValueError: a pattern that matches nothing, a range without layers or without a stack, or a weight that is not
        an array.
    """
    if layers is not None and len(layers) != 2:
        raise ValueError(f"layers={list(layers)} is not [first, stop]; null as stop is the top.")
    first, stop = layers or (None, None)
    name = f"{'' if first is None else first}:{'' if stop is None else stop}"

    def places(paths: Any) -> dict[str, tuple[str, bool]]:
        """The chosen paths of the base: where each stands in delta, and whether it is cut."""
        chosen = [path for path, i in tree.select(paths, select).items() if i is not None]
        cut = {path for path in chosen if layers is not None and re.fullmatch(stack, path)}
        if layers is not None and not cut:
            raise ValueError(f"layers={list(layers)} cuts none of {chosen}: no path matches stack={stack!r}.")
        return {path: (f"{name}/{path}" if path in cut else path, path in cut) for path in chosen}

    def init(key: jax.Array, base: Any) -> Any:
        flat, delta = tree.flatten(base, leaf.is_node), {}
        for path, (place, cut) in places(flat).items():
            w = _array(path, flat[path])
            if cut and not len(range(w.shape[0])[first:stop]):
                raise ValueError(f"layers={[first, stop]} is empty: {path} has the layers 0 to {w.shape[0] - 1}.")
            delta[place] = in_full(w[first:stop] if cut else w)
        return tree.unflatten(delta)

    def bind(base: Any, delta: Any) -> Any:
        flat, own = tree.flatten(base, leaf.is_node), tree.flatten(delta)
        for path, (place, cut) in places(flat).items():
            flat[path] = _between(path, flat[path], own[place], first, stop) if cut else own[place]
        return tree.unflatten(flat)

    def axes(base_axes: Any) -> Any:
        flat = axes_of(base_axes)
        return tree.unflatten({place: flat[path] for path, (place, _) in places(flat).items()})

    return Adaptation(init, bind, axes)


def linear_probe(select: str | Sequence[str] = "(head|classifier)/.*") -> Adaptation:
    """Train the last layer alone, over frozen features.

    Args:
      select: its paths. A decoder whose head is its embedding has no layer of that kind.
    """
    return selected(select)


def bitfit(select: str | Sequence[str] = ".*bias") -> Adaptation:
    """Train the biases (BitFit, arXiv:2106.10199, sec. 3).

    Args:
      select: the biases; with a new task head also that head, which the paper trains too, e.g.
        `[".*bias", "classifier/kernel"]`.

    Raises:
      ValueError: when bound to a base without biases, e.g. a Llama: names the vectors that it does have.
    """
    inner = selected(select)

    def refuse(paths: Any) -> None:
        if not any(path.endswith("bias") for path in paths):
            vectors = [path for path in paths if not path.endswith(("kernel", "embedding"))]
            raise ValueError(
                f"bitfit trains biases and this model has none. Its other vectors are {vectors}: train these with "
                f"layer_norm(), or what you like with selected(...)."
            )

    def init(key: jax.Array, base: Any) -> Any:
        refuse(tree.flatten(base, leaf.is_node))
        return inner.init(key, base)

    def axes(base_axes: Any) -> Any:
        refuse(axes_of(base_axes))
        return inner.axes(base_axes)

    return inner._replace(init=init, axes=axes)


def layer_norm(select: str | Sequence[str] = ".*norm/(scale|bias)") -> Adaptation:
    """Train the gains (and biases) of the normalisations (arXiv:2312.11420)."""
    return selected(select)


def freeze_below(layer: int, *, embeddings: str = _BELOW, stack: str = "layers/.*") -> Adaptation:
    """Train the layers from this one up, the final norm and the head; freeze the embeddings and the layers below.

    A tied embedding is frozen, although it is the head too. The same as the parameter groups
    `adaptlab.optim.group_depth.freeze_below` over `full()`, without gradients and moments of what is frozen.

    Args:
      layer: the lowest layer that trains; negative numbers count from the top.
      embeddings: the paths below the layers.
      stack: the paths of the layers.
    """
    return selected(f"(?!(?:{embeddings})$).*", layers=(layer, None), stack=stack)


def anchors(base: Any, delta: Any) -> Any:
    """Return what a penalty on the change holds each array of a delta to.

    An array that stands for a weight of the base, at its path or below the name of a range (`selected`) or a stage
    (`chain`), is held to that weight; one of an adaptation's own (LoRA's A and B) to where the prepared base says that
    it starts, or to zero.
    """
    # A prepared base may hold where an adaptation's own arrays start, as parts of a node (PiSSA's factors).
    flat = tree.flatten(base, leaf.is_node) | tree.flatten(base)

    def anchor(path: str, x: Any) -> Any:
        above, rest = "", path
        while rest and rest not in flat:
            # Below a weight's own path stand the arrays of an adaptation.
            inside = any(rest.startswith(f"{weight}/") for weight in flat)
            above, _, rest = ("", "", "") if inside else rest.partition("/")
        if not rest:
            return jnp.zeros_like(x)
        cut = _RANGE.fullmatch(above)
        start = leaf.dense(flat[rest]).astype(x.dtype)
        return start[slice(*(int(n) if n else None for n in cut.groups()))] if cut else start

    return tree.map_with_path(anchor, delta)


def _array(path: str, w: Any) -> jax.Array:
    if leaf.is_node(w):
        raise ValueError(
            f"{path} is a {type(w).__name__} node and cannot train in full: select other paths, adapt it with lora(), "
            f"or in a chain train it before it is adapted."
        )
    return w


def _between(path: str, w: jax.Array, part: jax.Array, first: int | None, stop: int | None) -> Any:
    chosen = range(w.shape[0])[first:stop]
    w = w.astype(part.dtype)
    whole = jnp.concatenate([w[: chosen.start], part, w[chosen.stop :]])
    if w.ndim < 3 or path.endswith(("scale", "bias")):
        return whole
    layer = jnp.arange(w.shape[0]).reshape(-1, *[1] * (w.ndim - 3))
    wanted = (layer >= chosen.start) & (layer < chosen.stop)
    return leaf.TrainedLayers(whole, jnp.broadcast_to(wanted, w.shape[:-2]))
