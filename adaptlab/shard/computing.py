"""Where a layer's weights and activations are while it computes: hints to XLA's partitioner, inside a trace."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from adaptlab.shard.moving import move
from adaptlab.shard.placement import Placement, Rules, mesh_axes

__all__ = ["computing", "computing_placement", "constrain", "constrain_rest", "gather", "on", "on_one_cpu", "pin"]

_COMPUTING: ContextVar[Placement | None] = ContextVar("computing", default=None)

_LOOSE = {
    "batch": PartitionSpec.UNCONSTRAINED,
    "expert_batch": PartitionSpec.UNCONSTRAINED,
    "time": PartitionSpec.UNCONSTRAINED,
    "kv_heads": None,
}
"""What is said of these where they do not divide. One example of a batch, or a prompt in front of a text: the
partitioner decides. Fewer key/value heads than devices: every device has all of them."""


@contextmanager
def computing(placement: Placement | None) -> Iterator[None]:
    """Inside, `constrain` follows this placement's rules. Enter it inside the function that is traced."""
    token = _COMPUTING.set(placement)
    try:
        yield
    finally:
        _COMPUTING.reset(token)


def computing_placement() -> Placement | None:
    """Return the placement of the innermost `computing`, or None."""
    return _COMPUTING.get()


def on_one_cpu() -> bool:
    """Whether what is traced computes on a single CPU device: a run's own, if many are spread over a `replica` axis."""
    placement = computing_placement()
    if placement is None:
        return jax.default_backend() == "cpu"
    sizes = placement.mesh.shape
    return placement.mesh.devices.flat[0].platform == "cpu" and placement.mesh.size == sizes.get("replica", 1)


def on(placement: Placement | None, f: Callable[..., Any]) -> Callable[..., Any]:
    """Return f, computing on this placement whenever it is called or traced."""

    @functools.wraps(f)
    def placed(*args: Any, **kwargs: Any) -> Any:
        with computing(placement):
            return f(*args, **kwargs)

    return placed


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Say where an array is while it computes, by the logical names of its axes.

    The identity outside of `computing`, and on a mesh of one device. An axis that does not divide is an error, but
    "batch" and "time" are then left to the partitioner, and "kv_heads" copied to every device.

    Raises:
      ValueError: an axis without a rule, two axes on one mesh axis, or a size that does not divide.
    """
    placement = computing_placement()
    return x if placement is None else _constrained(x, names, placement, placement.compute)


def constrain_rest(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Say where an array rests: a slice of a weight before it is gathered, and its gradient."""
    placement = computing_placement()
    return x if placement is None else _constrained(x, names, placement, placement.rest)


def pin(arrays: Any, shardings: Any) -> Any:
    """Say inside a trace where the arrays of a tree rest (`Placement.shardings`)."""

    def one(x: jax.Array, sharding: NamedSharding) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(_here(sharding.mesh)[0], sharding.spec))

    return jax.tree.map(one, arrays, shardings)


def gather(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Bring a weight from where it rests to where it computes. Its gradient goes straight to where it rests."""
    placement = computing_placement()
    if placement is None:
        return x
    there, back = (_sharding(x, names, placement, rules) for rules in (placement.compute, placement.rest))
    return x if there is None or back is None else move(x, there, back)


def _constrained(x: jax.Array, names: Sequence[str | None], placement: Placement, rules: Rules) -> jax.Array:
    sharding = _sharding(x, names, placement, rules)
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


def _sharding(x: jax.Array, names: Sequence[str | None], placement: Placement, rules: Rules) -> NamedSharding | None:
    """Where an array is by some rules; None if there is but one place."""
    mesh, manual = _here(placement.mesh)
    sizes = {axis: size for axis, size in placement.mesh.shape.items() if size > 1 and axis not in manual}
    if not sizes:
        return None
    if unknown := [n for n in names if n is not None and n not in rules]:
        raise ValueError(f"no rule for the logical axes {unknown} of {names}; rules exist for {sorted(rules)}.")
    spec = [_part(name, size, rules, sizes) for name, size in zip(names, x.shape, strict=True)]
    used = [axis for part in spec if isinstance(part, tuple) for axis in part]
    if len(set(used)) < len(used):
        raise ValueError(f"two of the axes {tuple(names)} are on one mesh axis while computing ({spec}).")
    return NamedSharding(mesh, PartitionSpec(*spec))


def _here(mesh: Any) -> tuple[Any, frozenset[str]]:
    """The mesh as it is around the code being traced, and the axes that a shard_map around it has taken over."""
    around = jax.sharding.get_abstract_mesh()
    manual = frozenset() if around.empty else frozenset(around.manual_axes)
    return (around, manual) if manual else (mesh, manual)


def _part(name: str | None, size: int, rules: Rules, sizes: dict[str, int]) -> Any:
    axes = tuple(axis for axis in mesh_axes(rules, name) if axis in sizes)
    parts = 1
    for axis in axes:
        parts *= sizes[axis]
    if size % parts == 0:
        return axes or None
    if name in _LOOSE:
        return _LOOSE[name]
    over = " x ".join(f"{axis}={sizes[axis]}" for axis in axes)
    choices = [d for d in range(1, size + 1) if size % d == 0]
    raise ValueError(f"{name}={size} does not divide over {over}; choose {' x '.join(axes)} from {choices}.")
