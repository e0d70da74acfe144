"""Losses through a pipeline: GPipe, or one forward and one backward of a microbatch in turn (1F1B).

Letters: as in `adaptlab.models.pipeline`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from adaptlab.models.pipeline import (
    Cut,
    Stack,
    check_depth,
    check_microbatches,
    cut,
    key_of,
    microbatched,
    on_stages,
    part,
    pass_on,
    routed,
    stages,
)
from adaptlab.stats import Mean, merge

__all__ = ["SCHEDULES", "pipelined"]

SCHEDULES = ("1f1b", "gpipe")

Loss = Callable[[Any, Any, jax.Array], Mean]


def pipelined(loss: Loss, *, microbatches: int, schedule: str = "1f1b") -> Loss:
    """Return the same loss, whose gradient is computed as a pipeline on a mesh with stages; elsewhere itself.

    "gpipe" is `adaptlab.models.pipeline.gpipe`: all microbatches forward, then all backward. "1f1b" is PipeDream-Flush
    (arXiv:2006.09503; arXiv:2104.04473, sec. 2.2): a microbatch goes back as soon as it is through, so that a
    stage keeps the inputs of 2 P - 1 microbatches at most, however many there are, and computes the rest anew. In tick
    t stage s runs microbatch t - s forward and t - 2 (P - 1) + s backward; the first P - 1 ticks have no backward and
    the last P - 1 no forward, so that all takes (m + P - 1) times forward and backward of a stage
    (`adaptlab.models.pipeline.bubble_fraction`). The paper keeps P inputs: its stages do not tick together.

    With "1f1b" the gradient is that of the sum with respect to the weights, for the leaves that are asked for: of
    LoRA, A and B only. The weight must not depend on the weights, and forward-mode derivatives are refused by JAX:
    take "gpipe" for them. It draws dropout and label noise anew for each microbatch.

    Args:
      loss: `(params, batch, key) -> Mean`, which runs one model once and asks for no intermediates.
      microbatches: m, which divides the batch.
      schedule: "1f1b" or "gpipe".

    Raises:
      ValueError: fewer than one microbatch, or an unknown schedule; when called, sizes that do not divide.
    """
    if microbatches < 1:
        raise ValueError(f"microbatches={microbatches} must be at least 1.")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is not one of {list(SCHEDULES)}.")

    def piped(params: Any, batch: Any, key: jax.Array) -> Mean:
        if stages() == 1:
            return loss(params, batch, key)
        if schedule == "1f1b":
            return _with_own_gradient(loss, microbatches, params, batch, key)
        with microbatched(microbatches):
            return loss(params, batch, key)

    return piped


def _with_own_gradient(loss: Loss, m: int, params: Any, batch: Any, key: jax.Array) -> Mean:
    """The loss, whose gradient is computed along with it as soon as anybody asks for one."""
    layers, layers_are = jax.tree.flatten(params["layers"])
    others, others_are = jax.tree.flatten({k: v for k, v in params.items() if k != "layers"})
    rows, batch_is = jax.tree.flatten(batch)

    @jax.custom_vjp
    def value(layers: list[Any], others: list[Any], rows: list[Any], key: jax.Array) -> Mean:
        params = {**jax.tree.unflatten(others_are, others), "layers": jax.tree.unflatten(layers_are, layers)}
        with microbatched(m):
            return loss(params, jax.tree.unflatten(batch_is, rows), key)

    def value_and_gradient(layers: Any, others: Any, rows: Any, key: Any) -> tuple[Mean, Any]:
        """All arguments are `CustomVJPPrimal`s, which say who is asked for a gradient."""
        leaves = (_leaves(layers_are, layers), _leaves(others_are, others))
        batch = jax.tree.unflatten(batch_is, [x.value for x in rows])
        return _interleaved(_Task(loss, m, *leaves), batch, key.value)

    def back(gradient: Any, seed: Mean) -> Any:
        nothing = isinstance(seed.sum, SymbolicZero)
        scaled = [
            [None if g is None or nothing else g * jnp.asarray(seed.sum).astype(g.dtype) for g in part]
            for part in gradient
        ]
        return (*scaled, None, None)

    value.defvjp(value_and_gradient, back, symbolic_zeros=True)
    return value(layers, others, rows, key)


class _Reached(Exception):
    """A model has come to its layers: what follows is not computed here."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack


class _Task(NamedTuple):
    """What the ticks share.

    Attributes:
      loss: of one model.
      microbatches: m.
      layers: the weights of the layers, as `_Leaves`.
      others: all other weights.
    """

    loss: Loss
    microbatches: int
    layers: "_Leaves"
    others: "_Leaves"

    def batch(self, given: Any, index: Any) -> tuple[Any, jax.Array]:
        """A microbatch and its key."""
        batch_bm, key = given
        return jax.tree.map(lambda x: part(x, index), batch_bm, is_leaf=_is_cut), jax.random.fold_in(key, index)

    def reach(self, layers: Any, others: Any, given: Any, index: Any) -> Stack:
        """What the loss calls the layers with."""

        def stop(stack: Stack) -> jax.Array:
            raise _Reached(stack)

        try:
            with routed(stop):
                self.loss({**others, "layers": layers}, *self.batch(given, index))
        except _Reached as reached:
            return reached.stack
        raise ValueError("a pipeline needs a loss that runs a model with a stack of layers; this one runs none.")

    def end(self, layers: Any, others: Any, given: Any, index: Any, y: jax.Array) -> Mean:
        """The loss from what the layers return."""
        calls = []

        def skip(stack: Stack) -> jax.Array:
            calls.append(stack)
            return y

        with routed(skip):
            mean = self.loss({**others, "layers": layers}, *self.batch(given, index))
        if len(calls) > 1:
            raise ValueError(f"a pipeline runs one model once; this loss runs {len(calls)} (take schedule='gpipe').")
        return mean


def _is_cut(x: Any) -> bool:
    return isinstance(x, Cut)


class _Leaves(NamedTuple):
    """A tree whose leaves are asked for a gradient, or kept as they are."""

    structure: Any
    flags: list[bool]
    wanted: list[Any]
    kept: list[Any]

    def tree(self, wanted: list[Any], kept: list[Any]) -> Any:
        """The tree with these leaves."""
        wanted_, kept_ = iter(wanted), iter(kept)
        return jax.tree.unflatten(self.structure, [next(wanted_ if flag else kept_) for flag in self.flags])

    def filled(self, wanted: list[Any]) -> list[Any]:
        """These leaves, and None in place of the others."""
        wanted_ = iter(wanted)
        return [next(wanted_) if flag else None for flag in self.flags]


def _leaves(structure: Any, primals: list[Any]) -> _Leaves:
    wanted, kept = ([x.value for x in primals if x.perturbed is asked] for asked in (True, False))
    return _Leaves(structure, [x.perturbed for x in primals], wanted, kept)


def _interleaved(task: _Task, batch: Any, key: jax.Array) -> tuple[Mean, tuple[list[Any], list[Any]]]:
    """The loss over all microbatches, and the gradient of its sum: None for leaves that nobody asked for."""
    P, m, rows = stages(), task.microbatches, jax.tree.leaves(batch)[0].shape[0]
    layers = task.layers.tree(task.layers.wanted, task.layers.kept)
    others = task.others.tree(task.others.wanted, task.others.kept)
    check_depth(layers, P)
    check_microbatches(rows, m)
    given = (jax.tree.map(lambda x: cut(x, m), batch), key)
    like = jax.eval_shape(lambda: task.reach(layers, others, given, 0).x)
    forward, backward = _forward(task, P), _backward(task, P)
    first, last = _first(task, layers, given), _last(task, layers, given)

    def fill(carry: Any, t: jax.Array) -> tuple[Any, None]:
        held, kept = carry
        held, kept, _ = forward(held, kept, first(t), given, t)
        return (held, kept), None

    def steady(carry: Any, t: jax.Array) -> tuple[Any, None]:
        (held, kept), back, mean = carry
        held, kept, y = forward(held, kept, first(t), given, t)
        one, seed, tail = last(y, t - (P - 1))
        back = drain(back, seed, kept, t)
        back = (back[0], back[1], _added(back[2], tail))
        return ((held, kept), back, merge(mean, one)), None

    def drain(back: Any, seed: jax.Array, kept: jax.Array, t: jax.Array) -> Any:
        held, of_layers, of_others = back
        held, of_layers, dx = backward(held, of_layers, seed, kept, given, t)
        return held, of_layers, _added(of_others, first(t - 2 * (P - 1), dx))

    empty = jnp.zeros((P, *like.shape), like.dtype)
    sums = [[jnp.zeros_like(x) for x in leaves] for leaves in (task.layers.wanted, task.others.wanted)]
    ahead = (empty, jnp.zeros((P, 2 * P - 1, *like.shape), like.dtype))
    ahead, _ = jax.lax.scan(fill, ahead, _ticks(0, P - 1))
    start = (ahead, (empty, *sums), Mean.empty())
    ((_, kept), back, mean), _ = jax.lax.scan(steady, start, _ticks(P - 1, m + P - 1))
    seed = jnp.zeros(like.shape, like.dtype)
    back, _ = jax.lax.scan(lambda back, t: (drain(back, seed, kept, t), None), back, _ticks(m + P - 1, m + 2 * (P - 1)))
    return mean, (task.layers.filled(back[1]), task.others.filled(back[2]))


def _ticks(start: int, end: int) -> jax.Array:
    return jnp.arange(start, end, dtype=jnp.int32)


def _added(xs: list[Any], ys: list[Any]) -> list[Any]:
    return [x + y for x, y in zip(xs, ys, strict=True)]


def _forward(task: _Task, P: int) -> Callable[..., Any]:
    """Return `(held, kept, fed, given, tick) -> (held, kept, y)`: all stages forward by one microbatch."""
    m, split, everywhere = task.microbatches, PartitionSpec("stage"), PartitionSpec()

    def stage(layers: Any, others: Any, held: Any, kept: Any, fed: Any, given: Any, tick: Any) -> Any:
        here = jax.lax.axis_index("stage")
        at, valid = _at(tick - here, m)
        x, slot = jnp.where(here == 0, fed, held[0]), at % (2 * P - 1)
        x_or_old = jnp.where(valid, x, jax.lax.dynamic_index_in_dim(kept[0], slot, keepdims=False))
        kept = jax.lax.dynamic_update_index_in_dim(kept[0], x_or_old, slot, 0)[None]
        layers, others = task.layers.tree(*layers), task.others.tree(*others)
        found = task.reach(layers, others, given, at)
        return found.run(layers, x, found.args, key_of(found.key, 0, here))[None], kept

    of_stages = on_stages(stage, (split, everywhere, split, split, everywhere, everywhere, everywhere), (split, split))

    def forward(held: Any, kept: Any, fed: Any, given: Any, tick: Any) -> Any:
        layers, others = (task.layers.wanted, task.layers.kept), (task.others.wanted, task.others.kept)
        y, kept = of_stages(layers, others, held, kept, fed, given, tick)
        return pass_on(y, 1), kept, y[-1]

    return forward


def _backward(task: _Task, P: int) -> Callable[..., Any]:
    """Return `(held, sums, seed, kept, given, tick) -> (held, sums, dx)`: all stages back by one microbatch."""
    m, split, everywhere = task.microbatches, PartitionSpec("stage"), PartitionSpec()

    def stage(layers: Any, others: Any, held: Any, sums: Any, seed: Any, kept: Any, given: Any, tick: Any) -> Any:
        here = jax.lax.axis_index("stage")
        at, valid = _at(tick - 2 * (P - 1) + here, m)
        x = jax.lax.dynamic_index_in_dim(kept[0], at % (2 * P - 1), keepdims=False)
        wanted, rest = layers
        found = task.reach(task.layers.tree(wanted, rest), task.others.tree(*others), given, at)

        def run(wanted: Any, x: jax.Array) -> jax.Array:
            return found.run(task.layers.tree(wanted, rest), x, found.args, key_of(found.key, 0, here))

        _, pull = jax.vjp(run, wanted, x)
        moved, dx = pull(jnp.where(here == P - 1, seed, held[0]))
        sums = [total + jnp.where(valid, g, jnp.zeros_like(g)) for total, g in zip(sums, moved, strict=True)]
        return sums, jnp.where(valid, dx, jnp.zeros_like(dx))[None]

    specs = (split, everywhere, split, split, everywhere, split, everywhere, everywhere)
    of_stages = on_stages(stage, specs, (split, split))

    def backward(held: Any, sums: Any, seed: Any, kept: Any, given: Any, tick: Any) -> Any:
        layers, others = (task.layers.wanted, task.layers.kept), (task.others.wanted, task.others.kept)
        sums, dx = of_stages(layers, others, held, sums, seed, kept, given, tick)
        return pass_on(dx, -1), sums, dx[0]

    return backward


def _at(index: jax.Array, m: int) -> tuple[jax.Array, jax.Array]:
    """A microbatch that there is, and whether it is the one that was meant."""
    return jnp.clip(index, 0, m - 1), (index >= 0) & (index < m)


def _first(task: _Task, layers: Any, given: Any) -> Callable[..., Any]:
    """Return what is in front of the layers: `(index) -> x`, and `(index, dx) -> ` its gradient."""

    def first(index: jax.Array, dx: jax.Array | None = None) -> Any:
        at, valid = _at(index, task.microbatches)

        def x(wanted: list[Any]) -> jax.Array:
            return task.reach(layers, task.others.tree(wanted, task.others.kept), given, at).x

        if dx is None:
            return x(task.others.wanted)
        if not task.others.wanted:
            return []
        _, pull = jax.vjp(x, task.others.wanted)
        return pull(jnp.where(valid, dx, jnp.zeros_like(dx)))[0]

    return first


def _last(task: _Task, layers: Any, given: Any) -> Callable[..., Any]:
    """Return `(y, index) -> (Mean, dy, gradient)` of what is behind the layers."""

    def last(y: jax.Array, index: jax.Array) -> tuple[Mean, jax.Array, list[Any]]:
        def total(wanted: list[Any], y: jax.Array) -> tuple[jax.Array, Mean]:
            mean = task.end(layers, task.others.tree(wanted, task.others.kept), given, index, y)
            return jnp.asarray(mean.sum), mean

        (moved, dy), mean = jax.grad(total, (0, 1), has_aux=True)(task.others.wanted, y)
        return mean, dy, moved

    return last
