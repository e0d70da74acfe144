"""Searching for the global minimum: many starts a few steps, the better ones more, the best to the end."""

from typing import NamedTuple

import jax
import numpy as np

from adaptlab.scaling.form import Form
from adaptlab.scaling.losses import Loss
from adaptlab.scaling.minimise import descend, finish
from adaptlab.scaling.newton import CONVERGED, begin
from adaptlab.scaling.objective import Data, Space, constant_of

__all__ = ["Found", "search"]

_ROUNDS = (4, 6, 10)  # evaluations in each round; then a quarter of the members goes on
_LEAST = 16  # members that are refined to the end
_END = 400
_ROUNDING = 1e-12  # of an objective


class Found(NamedTuple):
    """The best minimum of one data set.

    theta: `(q,)`.
    objective: there.
    converged: whether the step that was left is rounding.
    agree: the share of the members refined to the end whose objective is within 1e-6 of it.
    others: `(k, q)` distinct other minima among them, best first.
    """

    theta: np.ndarray
    objective: float
    converged: bool
    agree: float
    others: np.ndarray


def search(form: Form, loss: Loss, space: Space, data: Data, theta: np.ndarray) -> list[Found]:
    """Return the best minimum of each of G data sets.

    Args:
      form, loss, space: the objective.
      data: y, sigma and weights `(G, n)`, each x `(n,)` or `(G, n)`.
      theta: `(G, S, q)` starts.

    Raises:
      ValueError: the law has no finite value at any start.
    """
    sets, starts, q = theta.shape
    owner = np.repeat(np.arange(sets), starts)
    state = begin(theta.reshape(-1, q))
    members = starts
    for steps in _ROUNDS:
        if members <= _LEAST:
            break
        state = descend(form, loss, space, state, data, owner, np.ones_like(state.theta, bool), steps)
        kept = max(_LEAST, -(-members // 4))
        order = np.argsort(state.final.reshape(sets, members), axis=1, kind="stable")[:, :kept]
        rows = (order + members * np.arange(sets)[:, None]).reshape(-1)
        state, owner, members = jax.tree.map(lambda a, rows=rows: a[rows], state), owner[rows], kept
    state = finish(form, loss, space, state, data, owner, np.ones_like(state.theta, bool), _END)
    objective = state.final + constant_of(loss) * np.sum(data.weights, axis=1)[owner]
    ends = (a.reshape(sets, members, *a.shape[1:]) for a in (state.theta, objective, state.status == CONVERGED))
    return [_best(form, *end) for end in zip(*ends, strict=True)]


def _best(form: Form, theta: np.ndarray, objective: np.ndarray, converged: np.ndarray) -> Found:
    order = np.argsort(objective, kind="stable")
    theta, objective, converged = theta[order], objective[order], converged[order]
    if not np.isfinite(objective[0]):
        raise ValueError(
            f"{form.name} has no finite value at any start that was tried. Give starts where it has one, as a grid "
            f"{{parameter: values}}; in log space the law must be positive at every point."
        )
    # Starts that end at the same minimum differ by rounding, and the lowest may be the one that got stuck in it.
    same = objective <= objective[0] + _ROUNDING * abs(objective[0])
    best = int(np.argmax(same & converged))
    near = 1e-6 * abs(objective[0])
    apart = np.flatnonzero(np.diff(objective) > near) + 1
    others = theta[apart[np.isfinite(objective[apart])]][:8]
    return Found(
        *(theta[best], float(objective[best]), bool(converged[best])),
        *(float(np.mean(objective <= objective[0] + near)), others),
    )
