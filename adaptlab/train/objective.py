"""The one objective: training differentiates it, curvature multiplies by its Hessian, landscapes evaluate it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adaptlab import tree
from adaptlab.adapt import Adaptation, anchors
from adaptlab.config import NonNegative
from adaptlab.rng import stream_id
from adaptlab.stats import Mean

__all__ = ["Loss", "Objective", "Term", "l2_sp", "make_objective"]

Loss = Callable[[Any, Any, jax.Array], Mean]
"""`(params, batch, key) -> Mean`, the summed loss and its weight (the number of targets)."""

Term = Callable[[Any, Any], jax.Array]
"""`(delta, base) -> penalty`, what is added to the mean loss: a regulariser."""

Objective = Callable[[Any, Any, Any, jax.Array], Mean]
"""`(delta, base, batch, key) -> Mean`."""


def make_objective(loss: Loss, adaptation: Adaptation, terms: Sequence[Term] = ()) -> Objective:
    """Return `objective(delta, base, batch, key) -> Mean`, with value mean(loss) + Σ terms.

    It stays a (sum, weight) pair, so that microbatches, hosts and padding merge exactly: a term counts once per unit of
    weight. The base is an argument, so no program holds a copy of it.
    """

    def bind(base: Any, delta: Any, key: jax.Array) -> Any:
        if adaptation.sample is None:
            return adaptation.bind(base, delta)
        return adaptation.sample(base, delta, jax.random.fold_in(key, stream_id("adaptation")))

    def objective(delta: Any, base: Any, batch: Any, key: jax.Array) -> Mean:
        total, weight = loss(bind(base, delta, key), batch, key)
        penalty = sum(term(delta, base) for term in terms)
        return Mean(total + weight * penalty, weight)

    return objective


def l2_sp(*, strength: NonNegative) -> Term:
    """The penalty strength/2 · ‖w - w_base‖² (L2-SP, arXiv:1802.01483, eq. 2).

    A leaf of delta that stands for a weight of the base is held to that weight, and one of its own (LoRA's A and B)
    to zero; see `adaptlab.adapt.anchors`.

    Args:
      strength: α of the paper.
    """

    def term(delta: Any, base: Any) -> jax.Array:
        moved = jax.tree.map(jnp.subtract, delta, anchors(base, delta))
        return 0.5 * strength * tree.dot(moved, moved)

    return term
