"""Vector-based random matrix adaptation."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation, axes_of
from adaptlab.adapt.matrices import EffectiveRank, keep_ranks, matrix_shape, targets
from adaptlab.config import Traced

__all__ = ["vera"]


def vera(
    rank: int = 256,
    *,
    d_initial: Traced = 0.1,
    effective_rank: EffectiveRank | None = None,
    select: str | Sequence[str] = "layers/.*/kernel",
    projection_seed: int = 0,
) -> Adaptation:
    """W + A diag(d) B diag(b) with trained vectors d `[R]` and b `[F]` (VeRA, arXiv:2310.11454, eq. 2).

    A and B are random, frozen, and shared by all adapted matrices: each takes the corner of its own shape. They are
    computed from a seed where they are used (`adaptlab.leaf.VectorScaled`), so they take no memory and no room in a
    saved delta. Their elements are uniform with Kaiming's variance: 2/D for A, of the largest D, and 2/R for B. Trains
    R + F parameters per adapted matrix.

    Args:
      rank: R; it costs computation but few parameters, so it is larger than LoRA's.
      d_initial: what d starts from; b starts at zero, so that the adapted model starts as the base.
      effective_rank: at most `rank`: only so many elements of d are used and trained, and it takes R's place in B's
        variance. None uses all.
      select: patterns of the matrices' whole paths; leading axes (a stack of layers) are batch axes.
      projection_seed: of A and B. It belongs to the adaptation, not to the run: a saved delta is bound to these
        matrices again.

    Raises:
      ValueError: a rank below 1, a pattern that matches nothing, or a selected leaf that is not a matrix.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1; use frozen() to train nothing.")

    def shapes(base: Any) -> dict[str, tuple[int, ...]]:
        chosen = targets(tree.flatten(base, leaf.is_node), select)
        return {path: matrix_shape(path, w, "vera") for path, w in chosen.items()}

    def init(key: jax.Array, base: Any) -> Any:
        del key  # nothing is drawn
        delta = {}
        for path, (*lead, _, f) in shapes(base).items():
            d = jnp.full((*lead, rank), jnp.asarray(d_initial, jnp.float32))
            delta[path] = {"d": d, "b": jnp.zeros((*lead, f))}
        return tree.unflatten(delta)

    def bind(base: Any, delta: Any) -> Any:
        flat_delta, chosen = tree.flatten(delta), shapes(base)
        widest = max(d for *_, d, _ in chosen.values())
        # A uniform variable has the variance bound²/3.
        bounds = ((6.0 / widest) ** 0.5, (6.0 / rank) ** 0.5)
        grown = 1.0 if effective_rank is None else jnp.sqrt(rank / jnp.asarray(effective_rank, jnp.float32))

        def node(path: str, w: Any) -> Any:
            if path not in chosen:
                return w
            d = keep_ranks(flat_delta[f"{path}/d"][..., None], effective_rank)[..., 0] * grown
            return leaf.VectorScaled(w, d, flat_delta[f"{path}/b"], projection_seed, bounds)

        return tree.map_with_path(node, base, is_leaf=leaf.is_node)

    def axes(base_axes: Any) -> Any:
        chosen = targets(axes_of(base_axes), select)
        return tree.unflatten({path: {"d": (*lead, "rank"), "b": (*lead, f)} for path, (*lead, _, f) in chosen.items()})

    def count(base: Any, delta: Any) -> int:
        kept = rank if effective_rank is None else min(rank, math.ceil(effective_rank))
        flat = tree.flatten(delta)
        return sum(math.prod(x.shape[:-1]) * (kept if path.endswith("/d") else x.shape[-1]) for path, x in flat.items())

    return Adaptation(init, bind, axes, count=count)
