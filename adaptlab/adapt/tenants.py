"""Many adapters over one base in one batch: each row of it is computed with its own."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adaptlab import leaf, tree
from adaptlab.adapt.merge import low_rank_nodes

__all__ = ["stack_adapters", "tenants"]


def stack_adapters(base: Any, models: Sequence[Any]) -> Any:
    """Stack the low-rank updates of several adapters, once: `{path: {"a": [*L, N, D, R], "b": [*L, N, R, F]}}`.

    Scales are part of b, and smaller ranks are filled with zeros. An adapter that does not adapt a path is zero there;
    the base itself among the models is an adapter that is zero everywhere.

    Args:
      base: the weights below all of them.
      models: what `bind` returns for each, e.g. of `lora()` over this base; their number is N.

    Raises:
      ValueError: no adapter at all, or a model that differs from the base by anything but low-rank updates.
    """
    nodes = [low_rank_nodes(base, model) for model in models]
    paths = list(dict.fromkeys(path for one in nodes for path in one))
    if not paths:
        raise ValueError(f"stack_adapters: none of {len(models)} models has a low-rank update.")
    factors = {}
    for path in paths:
        here = [one.get(path) for one in nodes]
        like = next(x for x in here if x is not None)
        rank = max(x.a.shape[-1] for x in here if x is not None)
        factors[path] = {
            "a": jnp.stack([_filled(x and x.a, like.a, -1, rank) for x in here], axis=-3),
            "b": jnp.stack([_filled(x and x.b * x.scale[..., None, None], like.b, -2, rank) for x in here], axis=-3),
        }
    return tree.unflatten(factors)


def _filled(factor: Any, like: Any, axis: int, rank: int) -> jax.Array:
    """The factor with zeros up to a rank; all zeros if it is None."""
    if factor is None:
        shape = list(like.shape)
        shape[axis] = rank
        return jnp.zeros(shape, like.dtype)
    widths = [(0, 0)] * factor.ndim
    widths[axis] = (0, rank - factor.shape[axis])
    return jnp.pad(factor, widths)


def tenants(base: Any, factors: Any, ids: jax.Array) -> Any:
    """Return params that compute row i of a batch with adapter ids[i].

    `model.apply(tenants(base, factors, ids), tokens)` equals the rows of separate runs; other ids, and other adapters
    of these shapes, are the same program.

    Args:
      base: the weights.
      factors: of `stack_adapters`.
      ids: int32 `[B]`, from 0 to N - 1, one for each row of the batch.
    """
    own = tree.flatten(factors)

    def node(path: str, w: Any) -> Any:
        if f"{path}/a" not in own:
            return w
        a, b = own[f"{path}/a"], own[f"{path}/b"]
        return leaf.Choice(w, a, b, jnp.broadcast_to(ids, (*a.shape[:-3], *ids.shape)))

    return tree.map_with_path(node, base, is_leaf=leaf.is_node)
