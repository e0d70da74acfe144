"""Trees as vectors, and stacks of trees as bases.

A basis of M vectors is a tree whose leaves have a leading axis M. Nothing is flattened into one array, so a vector
lives on a mesh where its parameters live, and a product with a basis is a matrix-vector product a leaf.

Letters: M vectors of a basis, K combinations of them.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from adaptlab import tree

__all__ = [
    "DRAWS",
    "Draw",
    "axpy",
    "coefficients",
    "combination",
    "combinations",
    "draw",
    "empty_basis",
    "orthogonalised",
    "orthonormalised",
    "put_row",
    "row",
    "scaled",
    "scrambled",
    "wide",
    "wide_dtype",
    "without",
]

Draw = Literal["rademacher", "normal"]
DRAWS = ("rademacher", "normal")
_HIGHEST = jax.lax.Precision.HIGHEST
_BLOCK = 8  # vectors of a basis in one pass over another vector


def wide_dtype(like: Any) -> Any:
    """The dtype of vectors over parameters: float32, or float64 where a parameter has it."""
    return jnp.float64 if any(x.dtype == jnp.float64 for x in jax.tree.leaves(like)) else jnp.float32


def wide(like: Any) -> Any:
    """Return the tree in `wide_dtype`."""
    dtype = wide_dtype(like)
    return jax.tree.map(lambda x: x.astype(dtype), like)


def scaled(factor: Any, v: Any) -> Any:
    """factor · v."""
    return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, v)


def axpy(factor: Any, x: Any, y: Any) -> Any:
    """factor · x + y."""
    return jax.tree.map(lambda a, b: jnp.asarray(factor, a.dtype) * a + b, x, y)


def draw(key: jax.Array, like: Any, how: Draw = "normal") -> Any:
    """Return a random vector: independent elements of mean 0 and variance 1, ±1 or normal.

    All elements are drawn as one array and cut into leaves: a generator for each leaf would take longer to compile
    than a model's Hessian.
    """
    leaves, structure = jax.tree.flatten(like)
    sample = _signs if how == "rademacher" else jax.random.normal
    drawn = sample(key, (sum(x.size for x in leaves),), wide_dtype(like))
    cuts, start = [], 0
    for x in leaves:
        cuts.append(drawn[start : start + x.size].reshape(x.shape).astype(x.dtype))
        start += x.size
    return jax.tree.unflatten(structure, cuts)


def _signs(key: jax.Array, shape: tuple[int], dtype: Any) -> jax.Array:
    """±1 with equal probability, 32 of them from each word that is drawn."""
    words = jax.random.bits(key, (-(-shape[0] // 32), 1), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)[None]) & jnp.uint32(1)
    return 1 - 2 * bits.reshape(-1)[: shape[0]].astype(dtype)


def scrambled(v: Any, seed: jax.Array) -> Any:
    """Return v with the signs of half its elements turned: any direction that is not in v's own invariant space."""
    leaves, structure = jax.tree.flatten(v)
    out = []
    for i, x in enumerate(leaves):
        places = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape) + (seed.astype(jnp.uint32) + i + 1)
        hashed = places * jnp.uint32(2654435769)  # Knuth's multiplicative hash; its upper bits are mixed
        out.append(jnp.where((hashed >> 20) & 1 == 1, -x, x))
    return jax.tree.unflatten(structure, out)


def empty_basis(size: int, like: Any) -> Any:
    """Return M zero vectors."""
    return jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), like)


def row(basis: Any, index: Any) -> Any:
    """Vector number `index` of a basis."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), basis)


def put_row(basis: Any, index: Any, v: Any) -> Any:
    """Return the basis with another vector number `index`."""
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, index, 0), basis, v)


def coefficients(basis: Any, v: Any) -> jax.Array:
    """⟨b_m, v⟩ of all vectors of a basis, `[M]`."""

    def one(b: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.tensordot(b, x, axes=x.ndim, precision=_HIGHEST)

    return functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(one, basis, v)))


def combination(basis: Any, c_M: jax.Array) -> Any:
    """Σ_m c_m b_m."""
    return jax.tree.map(lambda b: jnp.tensordot(c_M, b, axes=1, precision=_HIGHEST), basis)


def combinations(basis: Any, c_MK: jax.Array) -> Any:
    """K combinations of a basis: a basis of K vectors."""
    return jax.tree.map(lambda b: jnp.tensordot(c_MK.T, b, axes=1, precision=_HIGHEST), basis)


def without(basis: Any, c_M: jax.Array, v: Any, count: Any) -> Any:
    """v - Σ_{m < count} c_m b_m, reading v once for several vectors and no vector that does not count."""
    rows = c_M.shape[0]
    blocks = -(-rows // _BLOCK)
    block = -(-rows // blocks)

    def some(number: Any, v: Any) -> Any:
        first = jnp.minimum(number * block, rows - block)  # the last block may begin in the one before
        for i in range(block):
            c = jnp.where((first + i >= number * block) & (first + i < count), c_M[first + i], 0)
            v = jax.tree.map(lambda b, x, i=i, c=c: x - c.astype(x.dtype) * b, row(basis, first + i), v)
        return v

    return jax.lax.fori_loop(0, -(-jnp.asarray(count, jnp.int32) // block), some, v)


def orthogonalised(basis: Any, v: Any, count: Any) -> tuple[jax.Array, Any, jax.Array]:
    """Remove from v what lies in a basis: classical Gram-Schmidt, a second time where the first took most of v.

    What a pass leaves is orthogonal to rounding, relative to what it was given; so where little is taken, one pass is
    as good as two, and where much is taken, two are enough (Daniel, Gragg, Kaufman, Stewart 1976, "Reorthogonalization
    and stable algorithms"; Giraud, Langou, Rozložník 2005, "The loss of orthogonality in the Gram-Schmidt process").

    Args:
      basis: orthonormal vectors.
      v: the vector.
      count: how many vectors of the basis count, the first ones.

    Returns:
      What was removed, as coefficients `[M]`, what is left, and its norm.
    """
    size = jax.tree.leaves(basis)[0].shape[0]
    used_M = jnp.arange(size, dtype=jnp.int32) < count

    def again(state: Any) -> jax.Array:
        passes, _, _, before, after = state
        return (passes == 0) | ((passes < 2) & (after < 0.7 * before))

    def once(state: Any) -> Any:
        passes, total_M, v, _, before = state
        c_M = jnp.where(used_M, coefficients(basis, v), 0)
        left = without(basis, c_M, v, count)
        return passes + 1, total_M + c_M, left, before, tree.norm(left)

    norm = tree.norm(v)
    begun = jnp.zeros((), jnp.int32), jnp.zeros(size, wide_dtype(v)), v, norm, norm
    _, total_M, left, _, after = jax.lax.while_loop(again, once, begun)
    return total_M, left, after


def orthonormalised(vectors: Any) -> Any:
    """Return an orthonormal basis of what vectors span; of a vector that depends on those before it, zero."""
    size = jax.tree.leaves(vectors)[0].shape[0]

    def add(basis: Any, index: jax.Array) -> tuple[Any, None]:
        v = row(vectors, index)
        before = tree.norm(v)
        _, left, norm = orthogonalised(basis, v, index)
        dependent = norm <= 100 * jnp.finfo(norm.dtype).eps * before
        inverse = jnp.where(dependent, 0, 1 / jnp.where(dependent, 1, norm))
        return put_row(basis, index, scaled(inverse, left)), None

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, vectors), jnp.arange(size, dtype=jnp.int32))[0]
