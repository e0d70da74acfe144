"""Training a few weights, chosen by their Fisher information before training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation
from adaptlab.adapt.constants import bare, held, hold
from adaptlab.adapt.files import load_delta, save_delta

__all__ = ["fisher_mask", "fisher_masked", "load_mask", "save_mask"]

_NAME = "fisher_mask"


def fisher_masked(mask: str | Mapping[str, Any]) -> Adaptation:
    """Train the weights of a mask alone: W + a sparse change at fixed places (FISH mask, arXiv:2111.09839).

    delta holds one value per chosen weight and path, `[K]`, starting at zero. The places rest in the prepared base,
    layer by layer, so that a scan slices them; a layer with fewer than the most has places that hold zero.

    Args:
      mask: the places, `{path: int32 [K]}` in the flattened weight (its layers included), from `fisher_mask`; or the
        file that `save_mask` wrote. `python -m scripts.fisher_mask` makes one for a base and a corpus.

    Raises:
      ValueError: no mask at the path, or one that does not fit the base.
    """
    places = tree.flatten(load_mask(mask) if isinstance(mask, str) else dict(mask))
    counts = {path: int(np.shape(x)[0]) for path, x in places.items()}

    def prepare(base: Any) -> Any:
        flat = tree.flatten(base, leaf.is_node)
        for path, chosen in places.items():
            if path not in flat:
                raise ValueError(f"The mask chooses weights of {path}, which the base does not have: {sorted(flat)}.")
            shape = jax.eval_shape(leaf.dense, flat[path]).shape
            flat[path] = hold(flat[path], _NAME, _by_layer(path, np.asarray(chosen), shape))
        return tree.unflatten(flat)

    def init(key: jax.Array, base: Any) -> Any:
        return tree.unflatten({path: {"values": jnp.zeros(k)} for path, k in counts.items()})

    def bind(base: Any, delta: Any) -> Any:
        flat, own = tree.flatten(base, leaf.is_node), tree.flatten(delta)
        for path in places:
            beside = held(flat[path]).get(_NAME)
            if beside is None:
                raise ValueError(f"{path}: the base was not prepared for this mask; in a chain it must come first.")
            # One more value, zero, for places that are not used.
            values = jnp.append(own[f"{path}/values"], 0.0)[beside["which"]]
            flat[path] = leaf.SparseDelta(bare(flat[path]), beside["indices"], values)
        return tree.unflatten(flat)

    def axes(base_axes: Any) -> Any:
        return tree.unflatten({path: {"values": (None,)} for path in places})

    return Adaptation(init, bind, axes, prepare=prepare)


def _by_layer(path: str, chosen: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return the places in every layer, `[*L, K]` with K for the fullest, and which of delta's values belong there."""
    inner = 1 if path.endswith(("scale", "bias")) else min(2, len(shape))
    lead, size = shape[:-inner], int(np.prod(shape[-inner:]))
    layers = int(np.prod(lead))
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < layers * size:
        raise ValueError(f"The mask chooses place {chosen.max()} of {path}, which has {layers * size}.")
    layer, place = np.divmod(chosen, size)
    fullest = max(1, int(np.bincount(layer, minlength=layers).max(initial=0)))
    indices = np.zeros((layers, fullest), np.int32)
    which = np.full((layers, fullest), chosen.size, np.int32)
    for i in range(layers):
        own = np.flatnonzero(layer == i)
        indices[i, : own.size], which[i, : own.size] = place[own], own
    return {"indices": indices.reshape(*lead, fullest), "which": which.reshape(*lead, fullest)}


def fisher_mask(
    fisher: Any,
    density: float,
    *,
    select: str | Sequence[str] = ".*",
    scope: Literal["all", "tensor"] = "all",
) -> dict[str, Any]:
    """Return the places of the largest Fisher information, a tree of int32 `[K]` (arXiv:2111.09839).

    Args:
      fisher: the diagonal, of the base's shapes; see `adaptlab.measure.fisher_diagonal`.
      density: the share of the weights on offer that is chosen, above 0 and at most 1.
      select: patterns of the paths on offer.
      scope: the largest of "all" together, as in the paper, or of each "tensor" (all its layers together).

    Raises:
      ValueError: a density out of range, an unknown scope, or a pattern that matches nothing.
    """
    if not 0 < density <= 1 or scope not in ("all", "tensor"):
        raise ValueError(f"density={density} is above 0 and at most 1, and scope={scope!r} is 'all' or 'tensor'.")
    flat = tree.flatten(fisher)
    flat = {path: np.ravel(flat[path]) for path, i in tree.select(flat, select).items() if i is not None}
    groups = [list(flat)] if scope == "all" else [[path] for path in flat]
    mask = {}
    for paths in groups:
        joined = np.concatenate([flat[path] for path in paths])
        best = np.argsort(-joined, kind="stable")[: max(1, round(density * joined.size))]
        chosen = np.zeros(joined.size, bool)
        chosen[best] = True
        ends = np.cumsum([flat[path].size for path in paths])[:-1]
        for path, part in zip(paths, np.split(chosen, ends), strict=True):
            if part.any():
                mask[path] = np.flatnonzero(part).astype(np.int32)
    return tree.unflatten(mask)


def save_mask(path: str | Path, mask: Any, *, made: dict[str, Any], base: str) -> str:
    """Write a mask, with what it was made from and the SHA-256 of its base, and return its digest."""
    return save_delta(path, mask, adapt={_NAME: made}, base=base)


def load_mask(path: str | Path, *, base: str | None = None) -> Any:
    """Read what `save_mask` wrote; `base` is the SHA-256 it must be of, or None.

    Raises:
      ValueError: no mask, or one of another base.
    """
    saved = load_delta(path, base=base)
    if _NAME not in saved.adapt:
        raise ValueError(f"{path} is a delta, not a mask: make one with `python -m scripts.fisher_mask`.")
    return saved.delta
