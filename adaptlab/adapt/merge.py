"""Merging what was trained apart: soups, task arithmetic, TIES and DARE on task vectors τ = θ - θ_base.

All of it runs once, on the host, in NumPy. A `Merge` takes any trees of one structure: differences of whole models
(`merge_weights`) or of deltas of one adaptation (`merge_deltas`).
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import materialize
from adaptlab.adapt.selective import anchors
from adaptlab.rng import generator_for

__all__ = [
    "Merge",
    "average",
    "concatenated",
    "dare",
    "greedy_soup",
    "low_rank_nodes",
    "merge_deltas",
    "merge_weights",
    "task_arithmetic",
    "ties",
]

PyTree = Any


class Merge(NamedTuple):
    """A way of merging.

    Attributes:
      combine: `(vectors, weights, seed) -> vector`: flat dicts `{path: array}` of equal paths and shapes, their
        weights, and the seed of what is drawn.
      coefficients: `weights -> c` with combine(τ, w) = Σ c_i τ_i; None if the method is not linear.
    """

    combine: Callable[[Sequence[dict[str, np.ndarray]], Sequence[float], int], dict[str, np.ndarray]]
    coefficients: Callable[[Sequence[float]], list[float]] | None = None


def _linear(coefficients: Callable[[Sequence[float]], list[float]]) -> Merge:
    def combine(vectors: Any, weights: Any, seed: int) -> Any:
        factors = coefficients(weights)
        return {path: sum(c * v[path] for c, v in zip(factors, vectors, strict=True)) for path in vectors[0]}

    return Merge(combine, coefficients)


def average() -> Merge:
    """Σ w_i τ_i / Σ w_i: with equal weights the uniform soup (arXiv:2203.05482, sec. 2)."""
    return _linear(lambda weights: [w / sum(weights) for w in weights])


def task_arithmetic(*, scale: float = 1.0) -> Merge:
    """λ Σ w_i τ_i (arXiv:2212.04089, sec. 2). A negative weight unlearns a task.

    Args:
      scale: λ.
    """
    return _linear(lambda weights: [scale * w for w in weights])


def ties(
    *,
    density: float = 0.2,
    scale: float = 1.0,
    trim: Literal["vector", "tensor"] = "vector",
    elect: Literal["mass", "count"] = "mass",
) -> Merge:
    """Trim, elect a sign, and average what agrees with it (TIES, arXiv:2306.01708, alg. 1).

    Each τ_i keeps its largest entries; the sign of an entry is that of Σ τ_i; the result is λ times the mean of w_i τ_i
    over those that are not zero and have that sign.

    Args:
      density: the share of entries that are kept, above 0 and at most 1.
      scale: λ.
      trim: the largest of the whole "vector", as in the paper, or of each "tensor".
      elect: by the sum of the values ("mass", as in the paper) or by the sum of the signs ("count").

    Raises:
      ValueError: an argument out of its range.
    """
    _check_density(density)
    if trim not in ("vector", "tensor") or elect not in ("mass", "count"):
        raise ValueError(f"trim={trim!r} is 'vector' or 'tensor', and elect={elect!r} is 'mass' or 'count'.")

    def combine(vectors: Any, weights: Any, seed: int) -> Any:
        trimmed = [_trimmed(vector, density, trim) for vector in vectors]
        return {path: scale * _agreed([v[path] for v in trimmed], weights, elect) for path in vectors[0]}

    return Merge(combine)


def _trimmed(vector: dict[str, np.ndarray], density: float, trim: str) -> dict[str, np.ndarray]:
    if trim == "tensor":
        return {path: _largest(x, density) for path, x in vector.items()}
    flat = _largest(np.concatenate([x.ravel() for x in vector.values()]), density)
    ends = np.cumsum([x.size for x in vector.values()])[:-1]
    return {p: part.reshape(x.shape) for (p, x), part in zip(vector.items(), np.split(flat, ends), strict=True)}


def _largest(x: np.ndarray, density: float) -> np.ndarray:
    """The entries of the largest size, and zero for the others."""
    drop = x.size - int(density * x.size)
    kept = x.ravel().copy()
    kept[np.argpartition(np.abs(kept), drop - 1)[:drop] if drop else []] = 0
    return kept.reshape(x.shape)


def _agreed(parts: list[np.ndarray], weights: Sequence[float], elect: str) -> np.ndarray:
    mass = sum(np.sign(x) if elect == "count" else x for x in parts)
    sign = np.where(mass >= 0, 1, -1)
    agree = [np.sign(x) == sign for x in parts]
    total = sum(w * np.where(a, x, 0) for w, x, a in zip(weights, parts, agree, strict=True))
    return (total / np.maximum(sum(a.astype(np.int32) for a in agree), 1)).astype(parts[0].dtype)


def dare(merge: Merge | None = None, *, density: float = 0.1) -> Merge:
    """Drop entries at random, rescale the others by 1 / density, then merge (DARE, arXiv:2311.03099).

    Args:
      merge: what merges the sparse vectors; by default `task_arithmetic()`.
      density: the share that is kept, 1 - p of the paper.
    """
    _check_density(density)
    inner = merge or task_arithmetic()

    def combine(vectors: Any, weights: Any, seed: int) -> Any:
        def sparse(i: int, path: str, x: np.ndarray) -> np.ndarray:
            keep = generator_for(seed, f"dare/{path}", i).random(x.shape) < density
            return np.where(keep, x / density, 0).astype(x.dtype)

        dropped = [{path: sparse(i, path, x) for path, x in vector.items()} for i, vector in enumerate(vectors)]
        return inner.combine(dropped, weights, seed)

    return Merge(combine)


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise ValueError(f"density={density} is not above 0 and at most 1.")


def merge_weights(
    merge: Merge, base: PyTree, models: Sequence[PyTree], weights: Sequence[float] | None = None, seed: int = 0
) -> PyTree:
    """Merge whole models: base + merge(models - base), a delta of `full()`.

    Args:
      merge: the method.
      base: the weights all models started from; nodes count as the arrays they stand for, here and in the models.
      models: what `bind` returns for each.
      weights: one per model; None is 1 for each.
      seed: of what the method draws.

    Raises:
      ValueError: no models, another number of weights, or models of other paths or shapes.
    """
    return _merged(merge, materialize(base), [materialize(one) for one in models], weights, seed)


def merge_deltas(
    merge: Merge, base: PyTree, deltas: Sequence[PyTree], weights: Sequence[float] | None = None, seed: int = 0
) -> PyTree:
    """Merge deltas of one adaptation, array by array; see `merge_weights`.

    An array that stands for weights of the base is merged as its difference from them, and one of the adaptation's own
    as it is. LoRA's factors merge to factors: not the sum of their products, see `concatenated`.
    """
    return _merged(merge, anchors(base, deltas[0]) if deltas else {}, deltas, weights, seed)


def _merged(merge: Merge, start: PyTree, models: Sequence[PyTree], weights: Any, seed: int) -> PyTree:
    weights = [1.0] * len(models) if weights is None else list(weights)
    if not models or len(weights) != len(models):
        raise ValueError(
            f"{len(models)} models and {len(weights)} weights: give at least one, and one weight for each."
        )
    origin, flat = _host(start), [_host(model) for model in models]
    shapes = [{path: x.shape for path, x in one.items()} for one in (origin, *flat)]
    for i, one in enumerate(shapes[1:]):
        if odd := sorted(path for path in one.keys() | shapes[0].keys() if one.get(path) != shapes[0].get(path)):
            raise ValueError(
                f"Model {i} of {len(models)} has other paths or shapes than the first or the base: {odd[:5]}."
            )
    vector = merge.combine([{p: x - origin[p] for p, x in one.items()} for one in flat], weights, seed)
    return tree.unflatten({path: (x + vector[path]).astype(x.dtype) for path, x in origin.items()})


def _host(model: PyTree) -> dict[str, np.ndarray]:
    return {path: np.asarray(x) for path, x in tree.flatten(model).items()}


def greedy_soup(candidates: Sequence[PyTree], loss: Callable[[PyTree], float]) -> tuple[PyTree, list[int]]:
    """Average candidates for as long as that helps (arXiv:2203.05482, alg. 1).

    In the order of their own losses each one joins the average if the average's loss does not rise.

    Args:
      candidates: models or deltas of one structure.
      loss: on held-out data; choose other data for what is reported.

    Returns:
      The soup, and the numbers of its members.
    """
    losses = [loss(one) for one in candidates]
    order = sorted(range(len(candidates)), key=losses.__getitem__)
    members, soup, best = order[:1], candidates[order[0]], losses[order[0]]
    for i in order[1:]:
        zero = tree.map_with_path(lambda _, x: np.zeros_like(x), candidates[0])
        joined = _merged(average(), zero, [candidates[j] for j in (*members, i)], None, 0)
        if (value := loss(joined)) <= best:
            members, soup, best = [*members, i], joined, value
    return soup, members


def low_rank_nodes(base: PyTree, params: PyTree) -> dict[str, leaf.LowRank]:
    """Return the `LowRank` nodes of bound params by path.

    Raises:
      ValueError: params differ from the base by anything else.
    """
    own, nodes = tree.flatten(base, leaf.is_node), {}
    for path, x in tree.flatten(params, leaf.is_node).items():
        if isinstance(x, leaf.LowRank) and x.w is own.get(path):
            nodes[path] = x
        elif x is not own.get(path):
            raise ValueError(f"{path}: {type(x).__name__} is not a low-rank update of the base's weight.")
    return nodes


def concatenated(
    base: PyTree, models: Sequence[PyTree], coefficients: Sequence[float]
) -> tuple[PyTree, dict[str, Any]]:
    """Add low-rank updates exactly: Σ c_i s_i A_i B_i = [A_1 … A_n] [c_1 s_1 B_1; …; c_n s_n B_n].

    Args:
      base: the weights all models started from.
      models: what `bind` of a LoRA returns for each; ranks and selections may differ.
      coefficients: c.

    Returns:
      The delta, and the config of the LoRA that it belongs to: its rank is the sum of the ranks, its scale 1.

    Raises:
      ValueError: a model that is not the base with low-rank updates.
    """
    nodes, delta = [low_rank_nodes(base, model) for model in models], {}
    paths = list(dict.fromkeys(path for one in nodes for path in one))
    ranks = [next(iter(one.values())).a.shape[-1] for one in nodes]
    for path in paths:
        like = next(one[path] for one in nodes if path in one)
        a, b = [], []
        for one, c, rank in zip(nodes, coefficients, ranks, strict=True):
            if path in one:
                a.append(np.asarray(one[path].a))
                b.append(c * np.asarray(one[path].scale)[..., None, None] * np.asarray(one[path].b))
            else:  # every path has the same rank
                a.append(np.zeros((*like.a.shape[:-1], rank), np.float32))
                b.append(np.zeros((*like.b.shape[:-2], rank, like.b.shape[-1]), np.float32))
        delta[path] = {"a": np.concatenate(a, axis=-1), "b": np.concatenate(b, axis=-2).astype(np.float32)}
    config = {
        "_target_": "adaptlab.adapt.lora",
        "rank": sum(ranks),
        "alpha": float(sum(ranks)),
        "select": [re.escape(path) for path in paths],
    }
    return tree.unflatten(delta), config
