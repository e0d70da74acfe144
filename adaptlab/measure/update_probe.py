"""Updates measured while training: a few numbers of each matrix's ΔW, at the same steps as the held-out text.

Metrics are named `update/<what>/<matrix>/<layer>`, such as `update/stable_rank/layers.attention.query/0`: the matrix is
its path without the last name `kernel`, and the layer its indices on the leading axes, absent where there are none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import leaf, tree
from adaptlab.measure.update import (
    Update,
    effective_rank,
    frobenius,
    participation,
    singular_values,
    stable_rank,
    updates,
)
from adaptlab.measure.update_relation import relation
from adaptlab.shard import fetch

__all__ = [
    "METRICS",
    "MeasuredUpdates",
    "make_update_probe",
    "make_update_slot_probe",
    "measured_updates",
    "named",
]

METRICS = (
    "stable_rank",
    "effective_rank",
    "participation",
    "norm",
    "relative_norm",
    "spectral_ratio",
    "cosine",
    "angle",
)
"""What can be measured; see `adaptlab.measure.update` and `adaptlab.measure.update_relation`."""


class MeasuredUpdates(NamedTuple):
    """What is measured of updates; made by `measured_updates`, which has the attributes."""

    select: str | Sequence[str]
    metrics: Sequence[str]
    singular_values: Sequence[int]


def measured_updates(
    select: str | Sequence[str] = "layers/.*/kernel",
    metrics: Sequence[str] = METRICS,
    singular_values: Sequence[int] = (),
) -> MeasuredUpdates:
    """Say what is measured of updates.

    Args:
      select: patterns of whole `/`-joined paths: of which matrices.
      metrics: which of `METRICS`; `spectral_ratio` is σ₁(ΔW) / σ₁(W).
      singular_values: which of the σ_k themselves, as `update/sigma_<k>/…`, k from 1.

    Raises:
      ValueError: an unknown metric, or a k below 1.
    """
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ValueError(f"metrics={unknown} cannot be measured of updates; choose from {list(METRICS)}.")
    if low := [k for k in singular_values if k < 1]:
        raise ValueError(f"singular_values={low}: they are counted from 1, the largest.")
    return MeasuredUpdates(select, tuple(metrics), tuple(singular_values))


def make_update_probe(
    wanted: MeasuredUpdates, bind: Callable[..., Any], base: Any
) -> Callable[[Any, Any, Any], dict[str, float]]:
    """Return `probe(numbers, base, delta) -> {metric: value}`; a value that does not exist (0/0) is left out.

    Args:
      wanted: what to measure.
      bind: `(numbers, base, delta) -> params`, traced.
      base: the weights W that updates are changes of.
    """
    norms = _spectral_norms(wanted, base)

    @jax.jit
    def one(numbers: Any, base: Any, delta: Any, norms: Any) -> Any:
        return _measured(wanted, base, bind(numbers, base, delta), norms)

    return lambda numbers, base, delta: _metrics(fetch(one(numbers, base, delta, norms)))


def make_update_slot_probe(
    wanted: MeasuredUpdates,
    bind: Callable[..., Any],
    over_slots: Callable[[Callable[[Any, Any], Any]], Callable[[Any, Any], Any]],
    base: Any,
) -> Callable[..., Callable[[int], dict[str, float]]]:
    """Return `probe(numbers_S, states_S, active_S, base) -> slot -> metrics`: `make_update_probe` for S models at once.

    Args:
      wanted: what to measure.
      bind: `(numbers, base, state) -> params`, traced.
      over_slots: lifts `(each, shared) -> result` to slots, see `adaptlab.train.over_slots`.
      base: the weights W that updates are changes of.
    """
    norms = _spectral_norms(wanted, base)

    def one(each: Any, shared: Any) -> Any:
        (numbers, state), (base, norms) = each, shared
        return _measured(wanted, base, bind(numbers, base, state), norms)

    many = jax.jit(over_slots(one))

    def probe(numbers_S: Any, states_S: Any, active_S: Any, base: Any) -> Callable[[int], dict[str, float]]:
        found = fetch(many((numbers_S, states_S), (base, norms)))
        return lambda slot: _metrics(jax.tree.map(lambda x: x[slot], found))

    return probe


def _spectral_norms(wanted: MeasuredUpdates, base: Any) -> dict[str, jax.Array]:
    """`{path: σ₁(W) [*L]}` if that is needed: W does not change, and is decomposed once."""

    @jax.jit
    def norms(base: Any) -> dict[str, jax.Array]:
        flat = tree.flatten(base, leaf.is_node)
        paths = [path for path, i in tree.select(flat, wanted.select).items() if i is not None]
        return {path: jnp.max(singular_values(leaf.dense(flat[path])), axis=-1) for path in paths}

    return norms(base) if "spectral_ratio" in wanted.metrics else {}


def _measured(wanted: MeasuredUpdates, base: Any, params: Any, norms: Mapping[str, jax.Array]) -> Any:
    """`{path: {what: [*L]}}`."""
    weights, changes = tree.flatten(base, leaf.is_node), updates(base, params, wanted.select)
    return {path: _numbers(wanted, leaf.dense(weights[path]), u, norms.get(path)) for path, u in changes.items()}


def _metrics(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    rows = [named(what, path, x) for path, numbers in found.items() for what, x in numbers.items()]
    return {metric: value for row in rows for metric, value in row.items() if np.isfinite(value)}


def named(what: str, path: str, values: np.ndarray) -> dict[str, float]:
    """Return `{metric: value}` of one quantity of a stack of matrices.

    >>> named("angle", "layers/attention/query/kernel", np.array([0.5, 0.25]))
    {'update/angle/layers.attention.query/0': 0.5, 'update/angle/layers.attention.query/1': 0.25}
    """
    matrix = path.removesuffix("/kernel").replace("/", ".")
    return {
        "/".join(["update", what, matrix, *([".".join(map(str, index))] if index else [])]): float(value)
        for index, value in np.ndenumerate(np.asarray(values, np.float64))
    }


def _numbers(
    wanted: MeasuredUpdates, w: jax.Array, update: Update, spectral_norm: jax.Array | None
) -> dict[str, jax.Array]:
    s = singular_values(update)
    found = {
        "stable_rank": stable_rank(s),
        "effective_rank": effective_rank(s),
        "participation": participation(s),
        "norm": frobenius(s),
        **relation(w, update)._asdict(),
    }
    if spectral_norm is not None:
        found["spectral_ratio"] = s[..., 0] / spectral_norm
    sigmas = {f"sigma_{k}": s[..., k - 1] for k in wanted.singular_values if k <= s.shape[-1]}
    return {name: found[name] for name in wanted.metrics} | sigmas
