"""The path that training takes through weight space: how far, how straight, how fast.

A point is ΔW of every weight that an adaptation changes, as `adaptlab.measure.update` has it: what LoRA moves is
measured in the space of W too, and never formed. For points t = 0, 1, … with the steps u_t = W_t - W_{t-1}, of each
layer and of all together:

    distance          ‖W_t - W_base‖
    relative          ‖W_t - W_base‖ / ‖W_base‖
    length            Σ_{s ≤ t} ‖u_s‖, the path's
    straightness      ‖W_t - W_0‖ / Σ_{s ≤ t} ‖u_s‖, 1 of a straight line
    step_ratio        ‖u_t‖ / ‖W_{t-1}‖
    turn              ⟨u_t, u_{t-1}⟩ / (‖u_t‖ ‖u_{t-1}‖), the cosine between steps that follow each other

A step is what lies between two measured points: of every update, u_t is the update and step_ratio the update-to-weight
ratio; of every hundredth, the length is that of a polygon, which is shorter than the path.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import leaf, tree
from adaptlab.measure.by_layer import Groups, cosine, named_by_layer, summed_by_layer, with_all
from adaptlab.measure.update import Factors, Update, dense_update, updates

__all__ = ["Path", "PathState", "changes", "difference", "make_path_probe", "measured_path", "weight_path"]

Changes = dict[str, Update]

_HIGHEST = jax.lax.Precision.HIGHEST


class PathState(NamedTuple):
    """What a path remembers.

    Attributes:
      size: ‖W‖ of the last point, by layer.
      start: ΔW of the first point.
      last: ΔW of the last one.
      step: the last step.
      length: Σ ‖u‖ by layer.
      found: the metrics of the last point, `{what: by layer}`.
    """

    size: Groups
    start: Changes
    last: Changes
    step: Changes
    length: Groups
    found: dict[str, Groups]


class Path(NamedTuple):
    """A fold over the points of a path: pure, so it may be traced, and its state saved.

    Attributes:
      init: `(base, params) -> state`, at the first point.
      update: `(state, base, params) -> state`, at each later one.
      finish: `state -> {metric: value}`, on the host.
    """

    init: Callable[[Any, Any], PathState]
    update: Callable[[PathState, Any, Any], PathState]
    finish: Callable[[PathState], dict[str, float]]


def changes(base: Any, params: Any, select: str | Sequence[str] = ".*") -> Changes:
    """Return `{path: ΔW}` of the selected weights that an adaptation has changed, vectors included.

    Arrays that the base does not have (those of bottlenecks, prefixes, prompts) are no change of a weight.

    Args:
      base: what the adaptation was bound to.
      params: `adaptation.bind(base, delta)`.
      select: patterns of whole `/`-joined paths.

    Raises:
      ValueError: a pattern that matches nothing.
    """
    flat, bound = tree.flatten(base, leaf.is_node), tree.flatten(params, leaf.is_node)
    moved = [p for p, i in tree.select(flat, select).items() if i is not None and bound[p] is not flat[p]]
    matrices = [path for path in moved if _is_matrix(path, flat[path])]
    found = updates(base, params, [re.escape(path) for path in matrices]) if matrices else {}
    return {p: found[p] if p in found else leaf.dense(bound[p]) - leaf.dense(flat[p]) for p in moved}


def _is_matrix(path: str, w: leaf.Weight) -> bool:
    return len(jax.eval_shape(leaf.dense, w).shape) >= 2 and not path.endswith(("/scale", "/bias"))


def difference(new: Update, old: Update) -> Update:
    """Return new - old; of factors A B - A' B' = (A - A') B + A' (B - B'), whose parts are as small as the step."""
    if isinstance(new, Factors) and isinstance(old, Factors):
        a = jnp.concatenate([new.a - old.a, old.a], axis=-1)
        return Factors(a, jnp.concatenate([new.b, new.b - old.b], axis=-2))
    return dense_update(new) - dense_update(old)


def _inner(x: Update, y: Update) -> jax.Array:
    """⟨x, y⟩ in parts that are still to be summed; of factors tr(A B B'ᵀ A'ᵀ) = ⟨Aᵀ A', B B'ᵀ⟩, `[*L, R, R']`."""
    if isinstance(x, Factors) and isinstance(y, Factors):
        return jnp.matmul(x.a.mT, y.a, precision=_HIGHEST) * jnp.matmul(x.b, y.b.mT, precision=_HIGHEST)
    return dense_update(x) * dense_update(y)


def _dot(x: Changes, y: Changes) -> Groups:
    found = summed_by_layer((path, _inner(x[path], y[path])) for path in x)
    return {group: jnp.asarray(total, jnp.float32) for group, total in found.items()}


def _norm(x: Changes) -> Groups:
    # Rounding may leave the square of factors that cancel just below zero.
    return jax.tree.map(lambda total: jnp.sqrt(jnp.maximum(total, 0.0)), with_all(_dot(x, x)))


def _between(new: Changes, old: Changes) -> Changes:
    return {path: difference(new[path], old[path]) for path in new}


def _over(x: Groups, y: Groups) -> Groups:
    return jax.tree.map(jnp.divide, x, y)


def _size(base: Any, moved: Changes) -> Groups:
    """‖W + ΔW‖ by layer; of factors from ‖W‖² + 2 ⟨Aᵀ W, B⟩ + ‖A B‖²."""
    flat, parts = tree.flatten(base, leaf.is_node), []
    for path, change in moved.items():
        w = leaf.dense(flat[path])
        if isinstance(change, Factors):
            along = 2.0 * jnp.matmul(change.a.mT, w, precision=_HIGHEST) * change.b
            parts += [(path, jnp.square(w)), (path, along), (path, _inner(change, change))]
        else:
            parts.append((path, jnp.square(w + change)))
    return jax.tree.map(jnp.sqrt, with_all(summed_by_layer(parts)))


def weight_path(select: str | Sequence[str] = ".*") -> Path:
    """Return the fold that measures a path (the equations are at the top of the module).

    Its metrics are `path/<what>/<group>`, with a layer's number behind the group of a stack, and the group "all", such
    as `path/distance/layers/3`. Norms are of the selected weights that the adaptation changes: those of W too.

    Args:
      select: patterns of whole `/`-joined paths.
    """

    def base_size(base: Any, moved: Changes) -> Groups:
        flat = tree.flatten(base, leaf.is_node)
        return _norm({path: leaf.dense(flat[path]) for path in moved})

    def init(base: Any, params: Any) -> PathState:
        moved = changes(base, params, select)
        if not moved:
            raise ValueError(f"The adaptation changes none of the weights of select={select!r}: there is no path.")
        distance, still = _norm(moved), _between(moved, moved)
        zero = jax.tree.map(jnp.zeros_like, distance)
        found = {"distance": distance, "relative": _over(distance, base_size(base, moved)), "length": zero}
        # There is no step yet: 0/0, which is left out.
        found |= dict.fromkeys(("straightness", "step_ratio", "turn"), _over(zero, zero))
        return PathState(_size(base, moved), moved, moved, still, zero, found)

    def update(state: PathState, base: Any, params: Any) -> PathState:
        moved = changes(base, params, select)
        step, distance = _between(moved, state.last), _norm(moved)
        walked = _norm(step)
        length = jax.tree.map(jnp.add, state.length, walked)
        found = {
            "distance": distance,
            "relative": _over(distance, base_size(base, moved)),
            "length": length,
            "straightness": _over(_norm(_between(moved, state.start)), length),
            "step_ratio": _over(walked, state.size),
            "turn": cosine(_dot(step, state.step), _dot(step, step), _dot(state.step, state.step)),
        }
        return PathState(_size(base, moved), state.start, moved, step, length, found)

    def finish(state: PathState) -> dict[str, float]:
        rows = [named_by_layer(f"path/{what}", groups) for what, groups in jax.device_get(state.found).items()]
        return {name: value for row in rows for name, value in row.items()}

    return Path(init, update, finish)


def measured_path(
    bind: Callable[[Any, Any], Any], base: Any, deltas: Iterable[Any], select: str | Sequence[str] = ".*"
) -> dict[str, np.ndarray]:
    """Return each metric of `weight_path` at each point, `{metric: [T]}`, nan where it does not exist.

    Args:
      bind: `(base, delta) -> params`, such as an adaptation's.
      base: the weights that points are changes of.
      deltas: in the order of training, such as those of its checkpoints.
      select: patterns of whole `/`-joined paths.
    """
    probe = make_path_probe(weight_path(select), bind)
    rows = [probe(base, delta) for delta in deltas]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}


def make_path_probe(path: Path, bind: Callable[..., Any]) -> Callable[..., dict[str, float]]:
    """Return `probe(*args) -> {metric: value}`, which remembers the points it has seen.

    Arguments are those of `bind`, the base second to last. The probe's memory is its own: what is resumed elsewhere
    begins a new path there. A study keeps it in its runs' checkpoints (`adaptlab.study.training_probes`).

    Args:
      path: see `weight_path`.
      bind: `(*numbers, base, delta) -> params`, traced.
    """
    held: list[Any] = []

    @jax.jit
    def first(*args: Any) -> PathState:
        return path.init(args[-2], bind(*args))

    @jax.jit
    def later(state: PathState, *args: Any) -> PathState:
        return path.update(state, args[-2], bind(*args))

    def probe(*args: Any) -> dict[str, float]:
        held[:] = [later(held[0], *args) if held else first(*args)]
        return path.finish(held[0])

    return probe
