"""Symmetric linear maps over the space of what trains, as values: products, and new maps from given ones.

An `Operator` is a pytree, so it is an argument of every jitted function: the base inside it is never a constant of a
program, and operators of one objective at other parameters or batches share a program.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import Partial

from adaptlab import tree
from adaptlab.config import Traced
from adaptlab.measure.curvature.vectors import axpy, wide

__all__ = [
    "Batches",
    "Operator",
    "Product",
    "apply",
    "at_once",
    "block",
    "damped",
    "dense",
    "negated",
    "pack",
    "packable",
    "packed",
    "preconditioned",
    "space_of",
    "stack_batches",
    "unpack",
]

Product = Callable[[Any], Any]
"""`v -> A v`, over trees like the operator's `space`."""

_ALIGNED, _LONG = 1024, 2**14


class Operator(NamedTuple):
    """A symmetric linear map A.

    Attributes:
      linearise: `() -> (v -> A v)`, traced: what is computed once for all products of one program.
      space: a vector of zeros: a tree like the parameters, in float32 or wider.
    """

    linearise: Any
    space: Any


class Batches(NamedTuple):
    """Batches of one shape, `[N, ...]` in every leaf."""

    stacked: Any


def stack_batches(batches: Batches | Sequence[Any]) -> Batches:
    """Put batches of one shape on top of each other, to be streamed over inside one program.

    Args:
      batches: a list of pytrees. What is stacked already is returned as it is, and should be where it is used often.

    Raises:
      ValueError: no batch, or batches of several shapes.
    """
    if isinstance(batches, Batches):
        return batches
    if hasattr(batches, "_fields") or not isinstance(batches, (list, tuple)):
        raise ValueError(f"batches is a {type(batches).__name__}; give a list of batches, `[batch]` for one.")
    shapes = [{p: jnp.shape(x) for p, x in tree.flatten(batch).items()} for batch in batches]
    if not shapes:
        raise ValueError("batches is empty; give at least one.")
    for i, other in enumerate(shapes):
        if other != shapes[0]:
            raise ValueError(
                f"batch {i} has shapes {other} where the first has {shapes[0]}; fill up a smaller batch with rows of "
                "weight 0, or leave it out."
            )
    return Batches(_stacked(list(batches)))


@jax.jit
def _stacked(batches: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *batches)


def space_of(theta: Any) -> Any:
    """The zero vector of the space of θ.

    Raises:
      ValueError: nothing trains, or a leaf is not real and floating.
    """
    flat = tree.flatten(theta)
    if not tree.count(theta):
        raise ValueError("There is nothing to train: curvature needs at least one parameter, so not `frozen()`.")
    if wrong := {path: x.dtype.name for path, x in flat.items() if not jnp.issubdtype(x.dtype, jnp.floating)}:
        raise ValueError(f"Curvature is over real numbers, and these leaves have none: {wrong}.")
    if not all(_rests(x) for x in flat.values()):
        return _zeros(theta)
    # One program for all leaves.
    return jax.jit(_zeros, out_shardings=jax.tree.map(lambda x: x.sharding, theta))(theta)


def _rests(x: Any) -> bool:
    """Whether it is an array somewhere, and not a value of a program that is being traced."""
    return isinstance(x, jax.Array) and not isinstance(x, Tracer)


def _zeros(theta: Any) -> Any:
    return wide(jax.tree.map(jnp.zeros_like, theta))


@jax.jit
def apply(operator: Operator, v: Any) -> Any:
    """Return A v.

    Args:
      operator: A.
      v: a tree like its `space`, of any floating dtype.
    """
    like = jax.tree.map(lambda x, z: x.astype(z.dtype), v, operator.space)
    return operator.linearise()(like)


def negated(operator: Operator) -> Operator:
    """-A."""
    return operator._replace(linearise=Partial(_negated, operator))


def _negated(operator: Operator) -> Product:
    product = operator.linearise()
    return lambda v: jax.tree.map(jnp.negative, product(v))


def damped(operator: Operator, damping: Traced) -> Operator:
    """A + λ I.

    Args:
      operator: A.
      damping: λ.
    """
    return operator._replace(linearise=Partial(_damped, operator, damping))


def _damped(operator: Operator, damping: Any) -> Product:
    product = operator.linearise()
    return lambda v: axpy(damping, v, product(v))


def preconditioned(operator: Operator, scale: Any) -> Operator:
    """P^(-1/2) A P^(-1/2) of a diagonal P > 0, which has the eigenvalues of P^(-1) A and is symmetric.

    Those of the Hessian decide whether a preconditioned gradient method is stable (arXiv:2207.14484, sec. 2.3).

    Args:
      operator: A.
      scale: P's diagonal, a tree like the parameters; see `adam_preconditioner`.
    """
    _same_shapes("scale", scale, operator.space)
    return operator._replace(linearise=Partial(_preconditioned, operator, scale))


def _preconditioned(operator: Operator, scale: Any) -> Product:
    product = operator.linearise()
    flat = tree.flatten(scale)
    root = tree.map_with_path(lambda path, z: jax.lax.rsqrt(flat[path].astype(z.dtype)), operator.space)

    def divided(v: Any) -> Any:
        return jax.tree.map(jnp.multiply, root, v)

    return lambda v: divided(product(divided(v)))


def block(operator: Operator, select: str | Sequence[str], *, layer: Any = None) -> Operator:
    """The diagonal block of A that belongs to some of the parameters, over the small space of those alone.

    Args:
      operator: A.
      select: patterns of whole `/`-joined paths of the parameters.
      layer: an index into the leading axis of every chosen leaf (layers that are stacked); may be traced. None is all.

    Raises:
      ValueError: a pattern that matches nothing, or `layer` where a chosen leaf has no leading axis.
    """
    flat = tree.flatten(operator.space)
    chosen = {path: flat[path] for path, owner in tree.select(flat, select).items() if owner is not None}
    if layer is not None:
        if flat_leaves := [path for path, x in chosen.items() if x.ndim < 1]:
            raise ValueError(f"layer={layer}: {flat_leaves} have no axis of layers; narrow `select`.")
        chosen = {path: x[0] for path, x in chosen.items()}
    return Operator(Partial(_block, operator, layer), chosen)


def _block(operator: Operator, layer: Any) -> Product:
    product = operator.linearise()

    def part(x: jax.Array) -> jax.Array:
        return x if layer is None else jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)

    def whole(x: jax.Array, zeros: jax.Array) -> jax.Array:
        return x if layer is None else jax.lax.dynamic_update_index_in_dim(zeros, x, layer, 0)

    def restricted(v: dict[str, jax.Array]) -> dict[str, jax.Array]:
        padded = tree.map_with_path(lambda path, z: whole(v[path], z) if path in v else z, operator.space)
        flat = tree.flatten(product(padded))
        return {path: part(flat[path]) for path in v}

    return restricted


def packable(operator: Operator) -> bool:
    """Whether each device holds vectors whole, so that one array a vector moves nothing between devices.

    Inside another program nobody knows, so there it is no.
    """
    return all(_rests(x) and x.sharding.is_fully_replicated for x in jax.tree.leaves(operator.space))


def packed(operator: Operator) -> Operator:
    """The same map over vectors of one array `[P]`: what is done to vectors takes one kernel, and not one a leaf.

    Compilers take as long for a leaf's kernels as for a layer's, and small leaves cost more in calls than in work.
    """
    return Operator(Partial(_packed, operator), pack(operator.space))


def _packed(operator: Operator) -> Product:
    product = operator.linearise()
    return lambda v: pack(product(unpack(v, operator.space)))


def pack(v: Any) -> jax.Array:
    """Return a vector's leaves behind each other, `[P]`; long ones end in zeros, so that P is a multiple of 1024.

    A CPU was four times as fast at a pass over five rows of 22,715,392 numbers as at one over rows of 22,715,141.
    """
    leaves, total = [x.reshape(-1) for x in jax.tree.leaves(v)], tree.count(v)
    rest = -total % _ALIGNED if total >= _LONG else 0
    return jnp.concatenate([*leaves, jnp.zeros(rest, leaves[0].dtype)])


def unpack(v: jax.Array, like: Any) -> Any:
    """Return `[..., P]` as a tree."""
    leaves, structure = jax.tree.flatten(like)
    cuts, start = [], 0
    for x in leaves:
        part = jax.lax.slice_in_dim(v, start, start + x.size, axis=-1)
        cuts.append(part.reshape(*v.shape[:-1], *x.shape))
        start += x.size
    return jax.tree.unflatten(structure, cuts)


def _same_shapes(name: str, given: Any, space: Any) -> None:
    shapes = [{path: x.shape for path, x in tree.flatten(t).items()} for t in (given, space)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name} has the shapes {shapes[0]}, and the parameters {shapes[1]}.")


def at_once(f: Callable[[Any], Any], xs: Any, together: int) -> Any:
    """Map f over a leading axis, `together` elements at a time: products share what they read of the model."""
    return jax.lax.map(f, xs, batch_size=together) if together > 1 else jax.lax.map(f, xs)


def dense(operator: Operator, *, together: int = 16) -> jax.Array:
    """Return A as a matrix `[P, P]`, for small P: column j is A e_j, in the order of `jax.flatten_util.ravel_pytree`.

    Args:
      operator: A.
      together: products at a time.
    """
    return _dense(operator, together)


@functools.partial(jax.jit, static_argnums=1)
def _dense(operator: Operator, together: int) -> jax.Array:
    flat, back = jax.flatten_util.ravel_pytree(operator.space)
    product = operator.linearise()

    def column(j: jax.Array) -> jax.Array:
        return jax.flatten_util.ravel_pytree(product(back(jax.nn.one_hot(j, flat.size, dtype=flat.dtype))))[0]

    return at_once(column, jnp.arange(flat.size, dtype=jnp.int32), together).T
