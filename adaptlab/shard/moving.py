"""A linear map that only says where its argument is, and, of another place, where the gradient is to go."""

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

__all__ = ["move"]


def move(x: jax.Array, there: NamedSharding, back: NamedSharding) -> jax.Array:
    """Return x, which is from now on `there`; its cotangent is told to be where x came from, at `back`.

    `jax.lax.with_sharding_constraint` sends the cotangent `there` too: the gradient of a weight that is gathered would
    be summed over all devices onto each of them, and cut into parts afterwards. So it is summed into its parts (a
    reduce-scatter, where the compiler has one). As a primitive, it may be differentiated in both directions, as often
    as one likes, and mapped.
    """
    return _move.bind(x, there=there, back=back)


def _moved(x: jax.Array, *, there: NamedSharding, back: NamedSharding) -> jax.Array:
    del back
    return jax.lax.with_sharding_constraint(x, there)


def _transposed(ct: Any, x: Any, *, there: NamedSharding, back: NamedSharding) -> list[Any]:
    del x
    return [_move.bind(ct, there=back, back=there)]


def _batched(args: Any, dims: Any, *, there: NamedSharding, back: NamedSharding) -> tuple[Any, int]:
    def widened(sharding: NamedSharding) -> NamedSharding:
        spec = [*sharding.spec, *[None] * (x.ndim - 1 - len(sharding.spec))]
        spec.insert(dim, PartitionSpec.UNCONSTRAINED)
        return NamedSharding(sharding.mesh, PartitionSpec(*spec))

    (x,), (dim,) = args, dims
    return _move.bind(x, there=widened(there), back=widened(back)), dim


_move = Primitive("move")
_move.def_impl(_moved)
_move.def_abstract_eval(lambda x, **_: x)
ad.deflinear2(_move, _transposed)
batching.primitive_batchers[_move] = _batched
mlir.register_lowering(_move, mlir.lower_fun(_moved, multiple_results=False))
