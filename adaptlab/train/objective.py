"""The one objective: training differentiates it, curvature multiplies by its Hessian, landscapes evaluate it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from adaptlab.adapt import Adaptation
from adaptlab.stats import Mean

__all__ = ["Loss", "Objective", "Term", "make_objective"]

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

    def objective(delta: Any, base: Any, batch: Any, key: jax.Array) -> Mean:
        total, weight = loss(adaptation.bind(base, delta), batch, key)
        penalty = sum(term(delta, base) for term in terms)
        return Mean(total + weight * penalty, weight)

    return objective
