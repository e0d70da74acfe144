"""The table of parameter groups, as it is logged and reported."""

from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np

from adaptlab import tree
from adaptlab.optim.groups import Groups

__all__ = ["GroupRow", "group_table"]


class GroupRow(NamedTuple):
    """Leaves, or some layers of them, that train alike.

    Attributes:
      paths: the leaves.
      layers: the layers of stacked leaves, as "3" or "0-5"; "all" where layers are not told apart.
      parameters: the number of trained elements in it.
      rate: multiplies the learning rate.
      decay: multiplies the weight decay.
      start: the first update (counted from 0) it trains in; None if that is never in this run.
    """

    paths: tuple[str, ...]
    layers: str
    parameters: int
    rate: float
    decay: float
    start: int | None


def group_table(groups: Groups | None, delta_shapes: Any, total_steps: int) -> list[GroupRow]:
    """Return what a grouping means for a delta, one row for all that trains alike; each element is in one row.

    Args:
      groups: from concrete numbers; None is one group.
      delta_shapes: the delta, or its shapes.
      total_steps: the number of updates.

    Raises:
      ValueError: there is something to train, and none of it ever trains.
    """
    flat = tree.flatten(delta_shapes)
    cells: dict[tuple, list[tuple[str, int]]] = {}
    for path, told in _resolve(groups, delta_shapes, total_steps).items():
        size = int(np.prod(flat[path].shape))
        for layers, share, rate, decay, start in _runs(told):
            never = start >= total_steps
            key = (layers, rate, decay, None if never else int(np.ceil(start)))
            cells.setdefault(key, []).append((path, size * share // len(told)))
    rows = [
        GroupRow(tuple(p for p, _ in members), layers, sum(n for _, n in members), rate, decay, start)
        for (layers, rate, decay, start), members in cells.items()
    ]
    if rows and all(row.start is None for row in rows):
        raise ValueError(
            f"No group ever trains in {total_steps} updates; unfreeze one of these paths:\n  " + "\n  ".join(flat)
        )
    return rows


def _resolve(groups: Groups | None, delta: Any, total_steps: int) -> dict[str, np.ndarray]:
    """`{path: [layers or 1, 3]}` of rate, decay and start."""
    if groups is None:
        return {path: np.asarray([[1.0, 1.0, 0.0]]) for path in tree.flatten(delta)}
    trees = groups.rate(delta), groups.decay(delta), groups.start(delta, total_steps)
    columns = [tree.flatten(jax.device_get(one)) for one in trees]
    return {
        path: np.stack(np.broadcast_arrays(*(np.ravel(column[path]) for column in columns)), axis=1)
        for path in columns[0]
    }


def _runs(told: np.ndarray) -> list[tuple[str, int, float, float, float]]:
    """Runs of neighbouring layers that are alike: their name, their number, and what holds for them."""
    cuts = [0, *(i for i in range(1, len(told)) if (told[i] != told[i - 1]).any()), len(told)]
    runs = []
    for a, b in pairwise(cuts):
        rate, decay, start = map(float, told[a])
        name = "all" if len(told) == 1 else str(a) if b - a == 1 else f"{a}-{b - 1}"
        runs.append((name, b - a, rate, decay, start))
    return runs
