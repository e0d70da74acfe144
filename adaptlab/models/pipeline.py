"""A stack of layers over several devices in turn: each holds a stage of the depth, and microbatches run through them.

Letters: as in `adaptlab.models.layers`; P stages, m microbatches, b rows of one microbatch.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from adaptlab.shard import computing_placement, constrain

__all__ = [
    "Stack",
    "bubble_fraction",
    "cut",
    "gpipe",
    "key_of",
    "layers_of",
    "microbatched",
    "on_stages",
    "part",
    "pass_on",
    "routed",
    "stages",
]

_USUAL = 4  # microbatches a stage, if the batch has as many: a bubble of a fifth at most


class Stack(NamedTuple):
    """A stack of layers, and what a model calls it with.

    Attributes:
      layers: the weights, each leaf with a leading axis of layers.
      run: `(layers, x, args, key) -> x`, through as many layers as the weights have.
      x: the activations in front, `[B, T, D]`.
      args: what all layers are given besides: arrays with a leading axis B, and others.
      key: for dropout, or None.
    """

    layers: Any
    run: Callable[[Any, jax.Array, Any, Any], jax.Array]
    x: jax.Array
    args: Any
    key: Any


Route = Callable[[Stack], jax.Array]

_ROUTE: ContextVar[Route | None] = ContextVar("route", default=None)
_MICROBATCHES: ContextVar[int | None] = ContextVar("microbatches", default=None)


@contextmanager
def routed(route: Route) -> Iterator[None]:
    """Inside, a model's stack is run by `route`."""
    token = _ROUTE.set(route)
    try:
        yield
    finally:
        _ROUTE.reset(token)


@contextmanager
def microbatched(microbatches: int | None) -> Iterator[None]:
    """Inside, a pipeline has so many microbatches; None leaves it to the batch."""
    token = _MICROBATCHES.set(microbatches)
    try:
        yield
    finally:
        _MICROBATCHES.reset(token)


def stages() -> int:
    """Return over how many stages the depth is split while computing."""
    placement = computing_placement()
    return 1 if placement is None else placement.mesh.shape.get("stage", 1)


def layers_of(recording: bool) -> Route | None:
    """Return what runs a model's stack in place of a plain scan, or None.

    Raises:
      ValueError: the model is asked for its intermediates, on a mesh with stages.
    """
    route = _ROUTE.get()
    if route is None and stages() > 1:
        route = gpipe
    if route is not None and recording:
        raise ValueError(
            "a pipeline keeps no intermediates of its layers (hidden states, attention, routers): ask for them on a "
            "mesh with stage=1."
        )
    return route


def bubble_fraction(stages: int, microbatches: int) -> float:
    """Return the share of time in which a stage waits, (P - 1) / (m + P - 1) (arXiv:2104.04473, sec. 2.2).

    It is the same for GPipe and 1F1B, which differ in memory: GPipe keeps what the backward pass needs of all m
    microbatches, 1F1B that of 2 P - 1.

    Raises:
      ValueError: fewer than one of either.
    """
    if stages < 1 or microbatches < 1:
        raise ValueError(f"stages={stages} and microbatches={microbatches} must each be at least 1.")
    return (stages - 1) / (microbatches + stages - 1)


def gpipe(stack: Stack) -> jax.Array:
    """Run a stack as a pipeline (GPipe, arXiv:1811.06965, sec. 2.3) over the mesh axis `stage`.

    In tick t, stage s runs microbatch t - s through its L / P layers and hands the result to stage s + 1; after
    m + P - 1 ticks all are through. It is a plain differentiable function: the transpose of the loop over ticks is the
    backward pipeline, and second derivatives and `vmap` work. What a layer keeps for it, the model's `remat` says; it
    is kept for all microbatches.

    Rows r, r + m, r + 2m, … are one microbatch, so that a batch that is split over devices is cut on each of them.
    Dropout draws anew for each microbatch and stage: other numbers than without a pipeline.

    Args:
      stack: the layers and their inputs.

    Returns:
      The activations behind, `[B, T, D]`.

    Raises:
      ValueError: a depth that the stages, or a batch that the microbatches, do not divide.
    """
    P, m = stages(), _microbatches(stack.x.shape[0])
    check_depth(stack.layers, P)
    x_bm, args_bm = cut(stack.x, m), jax.tree.map(lambda a: cut_if(a, stack.x.shape[0], m), stack.args)

    def stage(layers: Any, held: jax.Array, fed: jax.Array, args_bm: Any, key: Any, tick: jax.Array) -> jax.Array:
        here = jax.lax.axis_index("stage")
        index = jnp.clip(tick - here, 0, m - 1)
        x = jnp.where(here == 0, fed, held[0])
        args = jax.tree.map(lambda a: part(a, index) if isinstance(a, Cut) else a, args_bm, is_leaf=_is_cut)
        return stack.run(layers, x, args, key_of(key, index, here))[None]

    split, everywhere = PartitionSpec("stage"), PartitionSpec()
    stages_of = on_stages(stage, (split, split, everywhere, everywhere, everywhere, everywhere), split)

    def tick(held_P: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        fed = part(x_bm, jnp.minimum(t, m - 1))
        y_P = _rested(stages_of(stack.layers, held_P, fed, args_bm, stack.key, t))
        return pass_on(y_P, 1), y_P[-1]

    empty = jnp.zeros((P, *part(x_bm, 0).shape), stack.x.dtype)
    _, y_tb = jax.lax.scan(tick, _rested(empty), jnp.arange(m + P - 1, dtype=jnp.int32))
    return jnp.moveaxis(y_tb[P - 1 :], 0, 1).reshape(stack.x.shape)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("rows",), meta_fields=())
@dataclass(frozen=True)
class Cut:
    """An array `[b, m, …]` of microbatches."""

    rows: Any


def _is_cut(x: Any) -> bool:
    return isinstance(x, Cut)


def cut(x: jax.Array, microbatches: int) -> Cut:
    """Cut the rows of a batch in microbatches."""
    return Cut(x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]))


def cut_if(x: Any, rows: int, microbatches: int) -> Any:
    """Cut what has as many rows as the batch; the rest is all microbatches'."""
    return cut(x, microbatches) if jnp.ndim(x) and jnp.shape(x)[0] == rows else x


def part(x: Cut, index: Any) -> jax.Array:
    """One microbatch."""
    return jax.lax.dynamic_index_in_dim(x.rows, index, axis=1, keepdims=False)


def key_of(key: Any, microbatch: Any, stage: Any) -> Any:
    """The key of a microbatch in a stage."""
    return None if key is None else jax.random.fold_in(jax.random.fold_in(key, microbatch), stage)


def on_stages(f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Return f run by each stage on its own part; the other mesh axes stay with the partitioner."""
    placement, around = computing_placement(), jax.sharding.get_abstract_mesh()
    assert placement is not None
    mesh = placement.mesh if around.empty else around
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names={"stage"}, check_vma=False)


def pass_on(x_P: jax.Array, by: int) -> jax.Array:
    """Hand each stage's part to the next one (or with -1 the one before), in a ring."""
    P = stages()
    split = PartitionSpec("stage")
    ring = [(s, (s + by) % P) for s in range(P)]
    return on_stages(lambda x: jax.lax.ppermute(x, "stage", ring), (split,), split)(x_P)


def check_depth(layers: Any, stages: int) -> None:
    """Raise ValueError for a depth that the stages do not divide."""
    depth = jax.tree.leaves(layers)[0].shape[0]
    if depth % stages:
        choices = [p for p in range(1, depth + 1) if depth % p == 0]
        raise ValueError(f"depth={depth} does not divide over stage={stages}; choose stage from {choices}.")


def check_microbatches(rows: int, microbatches: int) -> None:
    """Raise ValueError for a batch that does not divide into microbatches, or those over the devices of a batch."""
    placement = computing_placement()
    over = 1 if placement is None else placement.size("batch")
    if rows % microbatches or (rows // microbatches) % over:
        choices = [m for m in range(1, rows + 1) if rows % m == 0 and (rows // m) % over == 0]
        raise ValueError(
            f"a batch of {rows} rows over {over} devices does not divide into microbatches={microbatches}; choose "
            f"{f'from {choices}' if choices else f'a batch of a multiple of {over * microbatches} rows'}."
        )


def _microbatches(rows: int) -> int:
    if (chosen := _MICROBATCHES.get()) is not None:
        check_microbatches(rows, chosen)
        return chosen
    placement = computing_placement()
    over = 1 if placement is None else placement.size("batch")
    each = rows // over if rows % over == 0 else rows
    return next(m for m in range(min(_USUAL * stages(), each), 0, -1) if each % m == 0)


def _rested(x_PbTD: jax.Array) -> jax.Array:
    """Say where the activations between stages are."""
    return constrain(x_PbTD, ("layers", "batch", "time", "embed"))
