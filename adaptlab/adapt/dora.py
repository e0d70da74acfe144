"""Low-rank adaptation of a weight's directions, with its magnitudes apart."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation, axes_of
from adaptlab.adapt.lora import Init, lora
from adaptlab.adapt.matrices import EffectiveRank, count_ranks, matrix_shape, targets
from adaptlab.config import Traced

__all__ = ["dora"]


def dora(
    rank: int = 8,
    *,
    alpha: Traced = 16.0,
    effective_rank: EffectiveRank | None = None,
    select: str | Sequence[str] = "layers/.*/kernel",
    detach_norm: bool = True,
    init_a: Init | None = None,
) -> Adaptation:
    """m ∘ (W + s · A B) / ‖W + s · A B‖_c with trained m, A and B (DoRA, arXiv:2402.09353, eq. 5).

    ‖·‖_c is the norm of each output unit's column, and m starts as ‖W‖_c: LoRA turns the columns, m alone sets their
    lengths. Trains R (D + F) + F parameters per adapted matrix. The sum is never formed while training: see
    `adaptlab.leaf.column_norms`.

    Args:
      rank: R.
      alpha: s = alpha / R.
      effective_rank: at most `rank`, see `lora`.
      select: patterns of the matrices' whole paths; leading axes (a stack of layers) are batch axes.
      detach_norm: let derivatives take the norm for a constant (sec. 4.3), as the paper's own runs and PEFT do. What
        trains is then no gradient of the loss, and products with its derivative, the Hessian of the measurements of
        curvature, are not symmetric: set it to false to measure these.
      init_a: `(key, shape) -> A`; by default `fan_in_uniform()`.

    Raises:
      ValueError: a rank below 1, a pattern that matches nothing, or a selected leaf that is not a matrix.
    """
    turned = lora(rank, alpha=alpha, effective_rank=effective_rank, select=select, init_a=init_a)

    def init(key: jax.Array, base: Any) -> Any:
        chosen = targets(tree.flatten(base, leaf.is_node), select)
        lengths = {}
        for path, w in chosen.items():
            matrix_shape(path, w, "dora")
            lengths[f"{path}/magnitude"] = jnp.linalg.norm(leaf.dense(w).astype(jnp.float32), axis=-2)
        return tree.unflatten(tree.flatten(turned.init(key, base)) | lengths)

    def bind(base: Any, delta: Any) -> Any:
        flat_delta = tree.flatten(delta)

        def node(path: str, v: Any) -> Any:
            magnitude = flat_delta.get(f"{path}/magnitude")
            return v if magnitude is None else leaf.Decomposed(v, magnitude, detach_norm)

        return tree.map_with_path(node, turned.bind(base, delta), is_leaf=leaf.is_node)

    def axes(base_axes: Any) -> Any:
        chosen = targets(axes_of(base_axes), select)
        lengths = {f"{path}/magnitude": (*lead, f) for path, (*lead, _, f) in chosen.items()}
        return tree.unflatten(axes_of(turned.axes(base_axes)) | lengths)

    return Adaptation(init, bind, axes, count=lambda base, delta: count_ranks(delta, effective_rank))
