"""Permutations of a network's parts that leave its function as it is: hidden units and attention heads.

Letters: L leading (layer) axes, G key/value heads, N query heads for each of them, K head width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from adaptlab import tree
from adaptlab.rng import generator_for

__all__ = ["Symmetry", "Use", "permuted", "random_permutation", "symmetries"]

PyTree = Any
Permutation = Mapping[str, np.ndarray]
"""`{symmetry: indices [*L, n]}`: the new part i is the old part indices[i]."""


class Use(NamedTuple):
    """An axis of a weight along which interchangeable parts lie side by side.

    Attributes:
      path: the weight's.
      axis: counted from the end, so that it is the same with and without leading axes.
      width: how many neighbouring indices are one part: 1 for a unit, K for a head.
    """

    path: str
    axis: int
    width: int = 1


class Symmetry(NamedTuple):
    """Parts that can be permuted if that is done in all their weights at once.

    Attributes:
      name: "units", "heads", …
      size: how many parts.
      uses: where they lie.
      shared: one permutation for all layers (the residual stream), not one for each.
      inner: parts inside of these parts (the query heads of a key/value head), which are permuted among themselves and
        move with them; `inner.size` is their number in each. In a permutation they are indices of all of them.
    """

    name: str
    size: int
    uses: tuple[Use, ...]
    shared: bool = False
    inner: "Symmetry | None" = None


def symmetries(
    params: PyTree, *, heads: int | None = None, kv_heads: int | None = None, axes: PyTree | None = None
) -> tuple[Symmetry, ...]:
    """Return the permutation symmetries of a model of this package.

    Of an MLP the units of each hidden layer. Of a Llama, GPT-2 or BERT, in each layer, the units of the feed-forward
    and the attention heads: with grouped queries the key/value heads, and within each of them its query heads. (Inside
    a head, and between the two halves of a rotary pair, there are continuous symmetries too, which are not searched.)

    Args:
      params: the weights.
      heads: H of a transformer.
      kv_heads: G; None is H.
      axes: the model's logical axes, `model.axes()`: then also the units of the residual stream, one permutation for
        the whole network (arXiv:2209.04836, app. A.3). Two models with one base need none.

    Raises:
      ValueError: a model of another kind, or numbers of heads that do not fit.
    """
    flat = tree.flatten(params)
    if "dense_0/kernel" in flat:
        return _of_mlp(flat)
    if "layers/feed_forward/up/kernel" not in flat:
        raise ValueError(f"Symmetries are known of an MLP, Llama, GPT-2 and BERT; this model has {sorted(flat)[:5]} ….")
    width = flat["layers/attention/query/kernel"].shape[-1]
    groups = kv_heads or heads
    if not heads or not groups or width % heads or heads % groups:
        raise ValueError(f"heads={heads}, kv_heads={kv_heads} do not divide {width} query columns, or one another.")
    found = [_of_feed_forward(flat), _of_heads(flat, heads, groups, width // heads)]
    return tuple(found if axes is None else [*found, _of_stream(flat, axes)])


def _of_mlp(flat: Mapping[str, Any]) -> tuple[Symmetry, ...]:
    depth = sum(path.endswith("/kernel") for path in flat)
    found = []
    for i in range(depth - 1):
        uses = Use(f"dense_{i}/kernel", -1), Use(f"dense_{i}/bias", -1), Use(f"dense_{i + 1}/kernel", -2)
        found.append(Symmetry(f"dense_{i}", flat[f"dense_{i}/kernel"].shape[-1], uses))
    return tuple(found)


def _uses(flat: Mapping[str, Any], places: Sequence[tuple[str, int]], width: int = 1) -> tuple[Use, ...]:
    """Those of the places that the model has."""
    return tuple(Use(path, axis, width) for path, axis in places if path in flat)


def _of_feed_forward(flat: Mapping[str, Any]) -> Symmetry:
    at = "layers/feed_forward/"
    places = [(at + "gate/kernel", -1), (at + "up/kernel", -1), (at + "up/bias", -1), (at + "down/kernel", -2)]
    return Symmetry("units", flat[at + "up/kernel"].shape[-1], _uses(flat, places))


def _of_heads(flat: Mapping[str, Any], heads: int, groups: int, width: int) -> Symmetry:
    at = "layers/attention/"
    queries = [(at + "query/kernel", -1), (at + "query/bias", -1), (at + "out/kernel", -2)]
    keys = [(f"{at}{name}/{what}", -1) for name in ("key", "value") for what in ("kernel", "bias")]
    if groups == heads:
        return Symmetry("heads", heads, _uses(flat, [*queries, *keys], width))
    inner = Symmetry("heads", heads // groups, _uses(flat, queries, width))
    return Symmetry("kv_heads", groups, _uses(flat, keys, width), inner=inner)


def _of_stream(flat: Mapping[str, Any], axes: PyTree) -> Symmetry:
    named = tree.flatten(axes, is_leaf=lambda x: isinstance(x, tuple))
    # A classifier over BERT's pooler reads the pooler's outputs, which are not the stream.
    behind = ("classifier/kernel",) if "pooler/kernel" in flat else ()
    uses = [
        Use(path, names.index(width) - len(names))
        for path, names in named.items()
        for width in ("embed", "embed_vector")  # of matrices, and of norms and biases
        if path in flat and width in names and path not in behind
    ]
    return Symmetry("stream", flat["embed/embedding"].shape[-1], tuple(uses), shared=True)


def leading(path: str, x: Any) -> int:
    """How many layer axes a weight has in front."""
    return x.ndim - (1 if path.rpartition("/")[2] in ("bias", "scale") else 2)


def random_permutation(symmetries: Sequence[Symmetry], params: PyTree, seed: int) -> dict[str, np.ndarray]:
    """Draw a permutation of everything that can be permuted."""
    flat, found = tree.flatten(params), {}
    for one in symmetries:
        use = one.uses[0]
        layers = () if one.shared else flat[use.path].shape[: leading(use.path, flat[use.path])]
        draw = generator_for(seed, f"permutation/{one.name}")
        indices = found[one.name] = np.broadcast_to(np.arange(one.size), (*layers, one.size)).copy()
        indices[...] = draw.permuted(indices, axis=-1)
        if one.inner is not None:
            own = np.broadcast_to(np.arange(one.inner.size), (*layers, one.size, one.inner.size)).copy()
            found[one.inner.name] = flat_inner(indices, draw.permuted(own, axis=-1))
    return found


def flat_inner(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Indices `[*L, G·N]` of all inner parts, from the outer ones' `[*L, G]` and their own inside each `[*L, G, N]`."""
    every = outer[..., None] * inner.shape[-1] + inner
    return every.reshape(*every.shape[:-2], -1)


def permuted(params: PyTree, symmetries: Sequence[Symmetry], permutation: Permutation) -> PyTree:
    """Return the same function with its parts in another order.

    Args:
      params: arrays.
      symmetries: of the model.
      permutation: for some or all of them; see `Permutation`.

    Raises:
      ValueError: a permutation of something that is no symmetry, or indices that are no permutation.
    """
    every = [part for one in symmetries for part in (one, one.inner) if part is not None]
    if unknown := sorted(permutation.keys() - {one.name for one in every}):
        raise ValueError(f"{unknown} are no symmetries of this model; it has {[one.name for one in every]}.")
    flat = {path: np.asarray(x) for path, x in tree.flatten(params).items()}
    for one in every:
        if one.name not in permutation:
            continue
        indices = np.asarray(permutation[one.name])
        if not np.array_equal(np.sort(indices, axis=-1), np.broadcast_to(np.arange(indices.shape[-1]), indices.shape)):
            raise ValueError(f"The indices of {one.name!r} do not name every part once.")
        for use in one.uses:
            flat[use.path] = _reordered(flat[use.path], use, indices)
    return tree.unflatten({path: jnp.asarray(x) for path, x in flat.items()})


def _reordered(x: np.ndarray, use: Use, indices: np.ndarray) -> np.ndarray:
    inside = indices[..., None] * use.width + np.arange(use.width)
    inside = inside.reshape(*indices.shape[:-1], -1)
    if inside.shape[-1] != x.shape[use.axis]:
        raise ValueError(f"{use.path}: {inside.shape[-1]} indices for an axis of {x.shape[use.axis]}.")
    behind = (1,) * (-use.axis - 1)
    between = (1,) * (x.ndim - inside.ndim - len(behind)) if inside.ndim > 1 else ()
    whole = inside.reshape(*inside.shape[:-1], *between, inside.shape[-1], *behind)
    return np.take_along_axis(x, whole.reshape((1,) * (x.ndim - whole.ndim) + whole.shape), axis=use.axis)
