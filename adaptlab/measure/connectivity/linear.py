"""Straight lines between models, and the barriers on them."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from adaptlab import leaf, tree
from adaptlab.adapt import materialize
from adaptlab.measure.landscape import Landscape, Surface, difference, line, plane

__all__ = ["Barrier", "barrier", "connect", "dense_models"]

PyTree = Any


class Barrier(NamedTuple):
    """How high the loss rises on a path between two models.

    Attributes:
      height: in units of the metric; at least 0.
      at: t of the highest rise, 0 at the start and 1 at the end.
      start: the metric of the first model.
      end: the metric of the second.
      definition: what the height is above, see `barrier`.
      rise: the height with a sign, see `barrier`.
    """

    height: float
    at: float
    start: float
    end: float
    definition: str
    rise: float


def barrier(path: Surface, metric: str, definition: Literal["line", "mean"] = "line") -> Barrier:
    """Return the barrier of a metric that is better the lower it is, on a path with t from 0 to 1.

        "line":  max over t of L(θ(t)) - [(1 - t) L(θ(0)) + t L(θ(1))]    (arXiv:2110.06296, def. 2.1)
        "mean":  max over t of L(θ(t)) - [L(θ(0)) + L(θ(1))] / 2          (arXiv:1912.05671, sec. 2)

    The maximum is over the measured t, both ends included: so neither is negative, and "mean" is half the difference of
    the ends where the loss is monotone, which "line" does not call a barrier if it is also convex.

    A height of 0 does not say how far a path is from having a barrier, and heights that are all 0 have no spread. The
    rise says it:

        rise = height                                           where that is positive
               max over t in [1/4, 3/4] of what it is above     otherwise: at most 0

    Its middle half leaves out the ends, where every path is at its line, so that the value hardly depends on how many t
    were measured. It is NaN if there is no barrier and the middle half was not measured. The rise is ours, not the
    papers'.

    Args:
      path: from `connect` or `curve_path`; of its ticks those from 0 to 1 count.
      metric: `"<domain>/<metric>"`.
      definition: what the height is above.

    Raises:
      ValueError: a surface of more than one axis, ticks without 0 or 1, no such metric, or an unknown definition.
    """
    if definition not in ("line", "mean"):
        raise ValueError(f"definition={definition!r} is not one of ['line', 'mean'].")
    if metric not in path.values:
        raise ValueError(f"metric={metric!r} was not measured; choose from {sorted(path.values)}.")
    if len(path.coordinates) != 1 or not {0.0, 1.0} <= set(path.coordinates[0].tolist()):
        raise ValueError(f"A barrier is measured along one axis with ticks at 0 and 1, not on {path.coordinates}.")
    t, values = path.coordinates[0], path.values[metric]
    inside = (t >= 0) & (t <= 1)
    t, values = t[inside], values[inside]
    start, end = values[0], values[-1]
    level = (1 - t) * start + t * end if definition == "line" else np.full_like(t, (start + end) / 2)
    # A path into infinite loss is an infinite barrier, not a missing one.
    rise = np.where(np.isnan(values), np.inf, values) - level
    highest = int(np.argmax(rise))
    height, middle = max(float(rise[highest]), 0.0), rise[(t >= 0.25) & (t <= 0.75)]
    signed = height if height > 0 else float(middle.max()) if middle.size else math.nan
    return Barrier(height, float(t[highest]), float(start), float(end), definition, signed)


def connect(
    landscape: Landscape,
    start: PyTree,
    end: PyTree,
    *rest: Any,
    names: tuple[str, str] = ("start", "end"),
    points: int = 25,
) -> Surface:
    """Measure on the straight line θ(t) = (1 - t) θ_start + t θ_end, t from 0 to 1.

    Equal models have an exactly flat line.

    Args:
      landscape: see `adaptlab.measure.landscape.make_landscape`.
      start: a model, or a delta if the landscape binds one.
      end: another of the same paths and shapes.
      *rest: what the landscape's `bind` takes besides θ.
      names: what they are called.
      points: how many t, evenly spaced; at least 3.

    Raises:
      ValueError: fewer than 3 points, or models of other paths or shapes.
    """
    if points < 3:
        raise ValueError(f"points={points}: a line needs at least 3, its ends among them.")
    label = f"from {names[0]} towards {names[1]} (1 = the distance between them)"
    between = plane(start, [difference(start, end)], [label], {names[0]: [0.0], names[1]: [1.0]})
    return line(landscape, between, np.linspace(0.0, 1.0, points), *rest)


def dense_models(base: PyTree, models: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Return models that were adapted in different ways as plain weights of one structure, to be connected.

    Args:
      base: what they were adapted from: says which paths and shapes there are.
      models: `adaptation.bind(base, delta)` by name.

    Returns:
      Every model, and the base as "base" unless a model has that name, as arrays.

    Raises:
      ValueError: a model that computes with more than the base's weights (bottlenecks, prefixes, prompts), or with
        other ones: no point of the base's weight space is that model.
    """
    shapes = {path: x.shape for path, x in tree.flatten(materialize(base)).items()}
    found = {"base": materialize(base)}
    for name, params in models.items():
        flat = tree.flatten(params, leaf.is_node)
        if added := sorted(flat.keys() - shapes.keys()):
            raise ValueError(
                f"{name} computes with {added}, which the base does not have: it is no point of the base's weight "
                "space. Connect it within its own delta's space instead."
            )
        found[name] = materialize(params)
        there = {path: x.shape for path, x in tree.flatten(found[name]).items()}
        if odd := sorted(path for path in shapes if there.get(path) != shapes[path]):
            raise ValueError(f"{name} has no or other weights at {odd[:5]} than the base.")
    return found
