"""Low-rank adaptation of convolutions."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation, axes_of
from adaptlab.adapt.lora import Init, fan_in_uniform
from adaptlab.adapt.matrices import EffectiveRank, count_ranks, keep_ranks, matrix_shape, targets
from adaptlab.config import Traced
from adaptlab.rng import stream_id

__all__ = ["lora_conv"]


def lora_conv(
    rank: int = 8,
    *,
    select: str | Sequence[str],
    alpha: Traced = 16.0,
    effective_rank: EffectiveRank | None = None,
    scaling: Literal["standard", "rank_stabilised"] = "standard",
    init_a: Init | None = None,
) -> Adaptation:
    """W + s · A B for `[*L, h, w, C, O]`: A `[h, w, C, R]` is a convolution to R channels, B `[R, O]` one of size 1.

    It is `lora` of the kernel as a matrix `[h w C, O]`, as PEFT adapts a convolution, and trains R (h w C + O)
    parameters per kernel. (`lora` takes the same kernel for a stack of h w matrices: a shape alone does not tell.) A
    model with other matrices too takes both: `partition({"conv_.*/kernel": lora_conv(select=".*"), …})`.

    Args:
      rank: R, at least 1.
      select: patterns of the kernels' whole paths; axes before the last four are batch axes.
      alpha: the numerator of the scale.
      effective_rank: at most `rank`, see `lora`.
      scaling: see `lora`.
      init_a: `(key, shape) -> A` for the shape `[*L, h w C, R]`; by default `fan_in_uniform()`. B starts at zero.

    Raises:
      ValueError: a rank below 1, an unknown scaling, a pattern that matches nothing, or a selected leaf that is no
        convolution's kernel.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1; use frozen() to train nothing.")
    if scaling not in ("standard", "rank_stabilised"):
        raise ValueError(f"scaling={scaling!r} is not one of ['standard', 'rank_stabilised'].")
    init_a = init_a or fan_in_uniform()
    used = rank if effective_rank is None else effective_rank
    scale = alpha / (used if scaling == "standard" else used**0.5)

    def init(key: jax.Array, base: Any) -> Any:
        delta = {}
        for path, w in targets(tree.flatten(base, leaf.is_node), select).items():
            shape = matrix_shape(path, w, "lora_conv")
            if len(shape) < 4:
                raise ValueError(
                    f"lora_conv selects {path!r} of shape {shape}, not [h, w, C, O]; lora adapts matrices."
                )
            *lead, h, w_, c, o = shape
            a = init_a(jax.random.fold_in(key, stream_id(path)), (*lead, math.prod((h, w_, c)), rank))
            delta[path] = {"a": a.reshape(*lead, h, w_, c, rank), "b": jnp.zeros((*lead, rank, o))}
        return tree.unflatten(delta)

    def bind(base: Any, delta: Any) -> Any:
        flat_delta = tree.flatten(delta)

        def node(path: str, w: Any) -> Any:
            a, b = flat_delta.get(f"{path}/a"), flat_delta.get(f"{path}/b")
            if a is None or b is None:
                return w
            return leaf.LowRankConv(w, a, keep_ranks(b, effective_rank), jnp.full(b.shape[:-2], scale, jnp.float32))

        return tree.map_with_path(node, base, is_leaf=leaf.is_node)

    def axes(base_axes: Any) -> Any:
        delta = {}
        for path, (*kernel, o) in targets(axes_of(base_axes), select).items():
            delta[path] = {"a": (*kernel, "rank"), "b": (*kernel[:-3], "rank", o)}
        return tree.unflatten(delta)

    return Adaptation(init, bind, axes, count=lambda base, delta: count_ranks(delta, effective_rank))
