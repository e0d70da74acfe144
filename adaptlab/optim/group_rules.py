"""Parameter groups by path, and their sum."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import tree
from adaptlab.config import Traced
from adaptlab.optim.groups import Groups

__all__ = [
    "Group",
    "by_pattern",
    "combine",
    "everywhere",
    "first_update",
    "group",
    "is_vector",
    "lora_plus",
    "no_decay",
]

PyTree = Any


class Group(NamedTuple):
    """What holds for one group of leaves; see `group`."""

    rate: Any
    decay: Any
    start: Any


def everywhere() -> Groups:
    """Everything alike: rate 1, decay 1, at once. The neutral element of `combine`."""

    def ones(delta: PyTree) -> PyTree:
        return jax.tree.map(lambda _: np.ones((), np.float32), delta)

    def zeros(delta: PyTree, total_steps: int) -> PyTree:
        del total_steps
        return jax.tree.map(lambda _: np.zeros((), np.float32), delta)

    return Groups(ones, ones, zeros)


def group(rate: Traced = 1.0, *, decay: Traced = 1.0, start: Traced = 0.0, frozen: bool = False) -> Group:
    """Return how one group trains.

    Args:
      rate: multiplies the learning rate.
      decay: multiplies the weight decay.
      start: the fraction of all updates before it trains; its first update is round(start · total_steps).
      frozen: it never trains.
    """
    return Group(rate, decay, np.float32(np.inf) if frozen else start)


def by_pattern(parts: Mapping[str, Group | Mapping[str, Any]]) -> Groups:
    """Treat the leaves by their names.

    Args:
      parts: `{pattern: group(…)}`, or a mapping of `group`'s arguments. Patterns are regular expressions, matched
        against whole `/`-joined paths of the delta (LoRA's end in `/a` and `/b`); the first match wins.

    Raises:
      ValueError: when resolved on a delta, if a pattern matches nothing or a path is not covered; add
        `".*": group()` for the rest.

    >>> groups = by_pattern({".*/bias": group(decay=0.0), ".*": group(0.5)})
    >>> delta = {"head": {"bias": jnp.zeros(2), "kernel": jnp.zeros((3, 2))}}
    >>> {path: float(x) for path, x in tree.flatten(groups.rate(delta)).items()}
    {'head/bias': 1.0, 'head/kernel': 0.5}
    """
    patterns = list(parts)
    members = [x if isinstance(x, Group) else group(**x) for x in parts.values()]

    def resolve(delta: PyTree) -> PyTree:
        owner = tree.select(tree.flatten(delta), patterns)
        if uncovered := [path for path, i in owner.items() if i is None]:
            raise ValueError(f"by_pattern({patterns}) covers no {uncovered}; add '.*': group() for the rest.")
        return tree.map_with_path(lambda path, _: members[owner[path] or 0], delta)

    def start(delta: PyTree, total_steps: int) -> PyTree:
        return _each(lambda one: first_update(one.start, total_steps), resolve(delta))

    return Groups(
        rate=lambda delta: _each(lambda one: _array(one.rate), resolve(delta)),
        decay=lambda delta: _each(lambda one: _array(one.decay), resolve(delta)),
        start=start,
    )


def no_decay(select: str | Sequence[str] | None = None) -> Groups:
    """Do not decay what `select` names.

    Args:
      select: patterns of whole paths of the delta. By default biases and the gains of norms: leaves named `bias` or
        `scale`, and what lies under a name with `norm` in it. A delta (LoRA's) may have none of these.

    Raises:
      ValueError: when resolved on a delta, if a pattern that was given matches nothing.
    """

    def decay(delta: PyTree) -> PyTree:
        paths = list(tree.flatten(delta))
        spared = {p for p in paths if is_vector(p)}
        if select is not None:
            spared = {p for p, i in tree.select(paths, select).items() if i is not None}
        return tree.map_with_path(lambda path, _: np.asarray(float(path not in spared), np.float32), delta)

    return everywhere()._replace(decay=decay)


def lora_plus(ratio: Traced = 16.0, *, select: str | Sequence[str] = ".*/b") -> Groups:
    """Let LoRA's B learn `ratio` times as fast as the rest (LoRA+, arXiv:2402.12354, alg. 1).

    The optimiser's learning rate is A's. At a large width D, A and B both learn efficiently only if the ratio grows
    with D (th. 1); the paper's experiments use 16.

    Args:
      ratio: λ of the paper, η_B / η_A.
      select: patterns of the B's whole paths.

    Raises:
      ValueError: when resolved on a delta, if a pattern matches nothing.
    """

    def rate(delta: PyTree) -> PyTree:
        owner = tree.select(tree.flatten(delta), select)
        return tree.map_with_path(lambda path, _: _array(1.0 if owner[path] is None else ratio), delta)

    return everywhere()._replace(rate=rate)


def combine(parts: Mapping[str, Groups] | Sequence[Groups]) -> Groups:
    """Apply several groupings at once: rates multiply, decays multiply, and the latest start holds.

    Args:
      parts: the groupings; in a config a mapping with any names, so that each can be overridden by its own.
    """
    members = list(parts.values()) if isinstance(parts, Mapping) else list(parts)
    if not members:
        return everywhere()

    def product(*factors: Any) -> Any:
        result = factors[0]
        for factor in factors[1:]:
            result = result * factor
        return result

    def latest(*starts: Any) -> Any:
        result = starts[0]
        for start in starts[1:]:
            xp = jnp if isinstance(result, jax.Array) or isinstance(start, jax.Array) else np
            result = xp.maximum(result, start)
        return result

    return Groups(
        rate=lambda delta: jax.tree.map(product, *(one.rate(delta) for one in members)),
        decay=lambda delta: jax.tree.map(product, *(one.decay(delta) for one in members)),
        start=lambda delta, total_steps: jax.tree.map(latest, *(one.start(delta, total_steps) for one in members)),
    )


def first_update(fraction: Any, updates: Any) -> Any:
    """Return round(fraction · updates) in float32: the same, bit by bit, for a known fraction and a traced one.

    `updates` is known. One product and no more: the compiler may reassociate two, and a half rounds either way.
    """
    product = _array(fraction) * np.asarray(updates, np.float32)
    return jnp.round(product) if isinstance(product, jax.Array) else np.asarray(np.round(product), np.float32)


def is_vector(path: str) -> bool:
    """Whether a path is, by its name, a bias or the gain of a norm."""
    *parents, name = path.split("/")
    return name in ("bias", "scale") or any("norm" in parent for parent in parents)


def _each(f: Any, resolved: PyTree) -> PyTree:
    return jax.tree.map(f, resolved, is_leaf=lambda x: isinstance(x, Group))


def _array(x: Any) -> Any:
    """A number as a float32 scalar, known or traced."""
    return x.astype(jnp.float32) if isinstance(x, jax.Array) else np.asarray(x, np.float32)
