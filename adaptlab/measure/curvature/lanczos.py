"""Extreme eigenpairs by the Lanczos method with thick restarts, and the quadrature that densities are made of.

With an orthonormal basis Q of a Krylov space of A, T = Qᵀ A Q has eigenpairs (λ, s) that approximate those of A:

    A Q = Q T + β q eᵀ,   hence   ‖A (Q s) - λ (Q s)‖ = β |s_m|   (Parlett 1998, sec. 13.2)

without a further product: some eigenvalue of A is within that of λ. Every new vector is made orthogonal to all the
others to rounding (`orthogonalised`): without it, copies of eigenvalues that have converged come back, and in float32 a
run of 60 steps is wrong. When the basis is full, the best part of it is kept and the run goes on from there (Wu and
Simon 2000, "Thick-restart Lanczos method for large symmetric eigenvalue problems"), so memory is bounded.

Letters: M the largest size of the basis, K the pairs asked for.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaptlab import linalg, tree
from adaptlab.config import Traced
from adaptlab.measure.curvature.operators import Operator, Product, negated, pack, packable, packed, unpack
from adaptlab.measure.curvature.vectors import (
    combinations,
    draw,
    empty_basis,
    orthogonalised,
    put_row,
    row,
    scaled,
    scrambled,
    wide,
    wide_dtype,
)

__all__ = ["Eigenpairs", "Quadrature", "bottom_eigenpairs", "lambda_max", "quadrature", "top_eigenpairs"]

_ROOMY = 256 * 2**20  # bytes: a basis that is smaller need not be short


class Eigenpairs(NamedTuple):
    """Eigenvalues with their eigenvectors.

    Attributes:
      values: λ, `[K]`, the most extreme first.
      vectors: orthonormal, a tree like the parameters with a leading axis K.
      residuals: ‖A v - λ v‖, `[K]`: an eigenvalue of A is within that of λ, and where the next one is at a distance d,
        within residual² / d.
      products: the number of products with A it took.
    """

    values: jax.Array
    vectors: Any
    residuals: jax.Array
    products: jax.Array


class _State(NamedTuple):
    """A basis of `size` vectors that A was applied to, T = Qᵀ A Q, and in row `size` the vector that follows."""

    basis: Any
    matrix_MM: jax.Array
    size: jax.Array
    beta: jax.Array
    products: jax.Array


class _Search(NamedTuple):
    """A state, its Ritz pairs (`_ritz`), residuals of the K best (infinite: none yet), and whether all are small."""

    state: _State
    values: jax.Array
    s_MM: jax.Array
    residuals: jax.Array
    done: jax.Array


def top_eigenpairs(
    operator: Operator,
    k: int = 1,
    *,
    key: jax.Array,
    tolerance: Traced = 1e-3,
    basis: int | None = None,
    max_products: Traced | None = None,
    start: Any = None,
) -> Eigenpairs:
    """Return the K largest eigenvalues (algebraically), in decreasing order, with eigenvectors.

    Stops when every residual is at most tolerance · |λ| (or rounding, relative to the largest |λ|). A single starting
    vector finds one vector of each eigenspace in exact arithmetic: of an eigenvalue with several, the others come in by
    rounding only, late or not at all.

    Args:
      operator: A, symmetric.
      k: K.
      key: of the starting vector: the same key gives the same pairs.
      tolerance: see above. The error of an eigenvalue is about its square, relative to the gaps between eigenvalues.
      basis: M, how many vectors to keep, more than K. By default K + 32, or K + 8 where those would take
        more than 256 MB.
      max_products: when to give up; the residuals then say how far it is. By default 20 M + 100.
      start: a vector to start from, e.g. the eigenvector of the step before; by default a random one.

    Raises:
      ValueError: k or basis do not fit the number of parameters.
    """
    total = tree.count(operator.space)
    size = _basis_size(operator.space, k, basis, total)
    limit = 20 * size + 100 if max_products is None else max_products
    return _eigenpairs(operator, key, start, tolerance, limit, k, size, packable(operator))


def bottom_eigenpairs(operator: Operator, k: int = 1, **settings: Any) -> Eigenpairs:
    """Return the K smallest eigenvalues (algebraically), in increasing order: `top_eigenpairs` of -A.

    Args:
      operator: A, symmetric.
      k: K.
      **settings: see `top_eigenpairs`.
    """
    pairs = top_eigenpairs(negated(operator), k, **settings)
    return pairs._replace(values=-pairs.values)


def lambda_max(operator: Operator, *, key: jax.Array, **settings: Any) -> jax.Array:
    """Return the largest eigenvalue; of a Hessian, the sharpness (arXiv:2103.00065).

    Args:
      operator: A, symmetric.
      key: see `top_eigenpairs`.
      **settings: see `top_eigenpairs`.
    """
    return top_eigenpairs(operator, 1, key=key, **settings).values[0]


def _basis_size(space: Any, k: int, basis: int | None, total: int) -> int:
    if not 0 < k <= total:
        raise ValueError(f"k={k} eigenpairs of an operator over {total} parameters; choose k from 1 to {total}.")
    if basis is None:
        basis = k + (32 if (k + 32) * tree.nbytes(space) <= _ROOMY else 8)
    elif basis <= k:
        raise ValueError(f"basis={basis} must be larger than k={k}; {k + 8} is a small one, {k + 32} a roomy one.")
    return min(basis, total)


@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def _eigenpairs(
    operator: Operator, key: jax.Array, start: Any, tolerance: Any, max_products: Any, k: int, size: int, whole: bool
) -> Eigenpairs:
    """Search, with vectors in one array each or not: the pairs are the same but for rounding."""
    if not whole:
        return _searched(operator, key, start, tolerance, max_products, k, size)
    start = pack(draw(key, operator.space, "rademacher") if start is None else wide(start))
    pairs = _searched(packed(operator), key, start, tolerance, max_products, k, size)
    return pairs._replace(vectors=unpack(pairs.vectors, operator.space))


def _searched(
    operator: Operator, key: jax.Array, start: Any, tolerance: Any, max_products: Any, k: int, size: int
) -> Eigenpairs:
    product = operator.linearise()
    keep = max(min(k + (size - k) // 2, size - 1), k)

    def going_on(search: _Search) -> jax.Array:
        return ~search.done & (search.state.products < max_products)

    def expanded(search: _Search) -> _Search:
        return _judged(_expanded(product, search.state), k, tolerance)

    def cycle(search: _Search) -> _Search:
        full = jax.lax.while_loop(lambda s: (s.state.size < size) & going_on(s), expanded, search)
        # A loop of at most one turn: a conditional would copy what it passes on.
        again = lambda s: (s.state.size == size) & going_on(s)  # noqa: E731
        return jax.lax.while_loop(again, lambda s: s._replace(state=_restarted(s, keep)), full)

    start = draw(key, operator.space, "rademacher") if start is None else start
    begun = _begun(operator.space, start, size)
    zeros = begun.matrix_MM
    unknown = jnp.full(k, jnp.inf, zeros.dtype)
    found = jax.lax.while_loop(going_on, cycle, _Search(begun, zeros[0], zeros, unknown, jnp.zeros((), bool)))
    vectors = combinations(found.state.basis, jnp.pad(found.s_MM[:, :k], ((0, 1), (0, 0))))
    return Eigenpairs(found.values[:k], vectors, found.residuals, found.state.products)


def _begun(space: Any, start: Any, size: int) -> _State:
    dtype = wide_dtype(space)
    first = _normalised(jax.tree.map(lambda x, z: x.astype(z.dtype), start, space))
    zero = jnp.zeros((), jnp.int32)
    basis = put_row(empty_basis(size + 1, space), 0, first)
    return _State(basis, jnp.zeros((size, size), dtype), zero, jnp.zeros((), dtype), zero)


def _normalised(v: Any) -> Any:
    norm = tree.norm(v)
    return scaled(1 / jnp.where(norm > 0, norm, 1), v)


def _expanded(product: Product, state: _State) -> _State:
    """Multiply the vector that follows by A, and make the next one of what is new in the result."""
    i = state.size
    q, before = row(state.basis, i), jnp.maximum(i - 1, 0)
    w = product(q)
    # In exact arithmetic the last two vectors are all there is to remove, the one before with the β of the last step
    # (but for the step after a restart). What is left needs one pass over the rest, which corrects both.
    own, coupling = tree.dot(q, w), state.beta
    w = jax.tree.map(lambda w, q, p: w - own.astype(w.dtype) * q - coupling * p, w, q, row(state.basis, before))
    rest, left, beta = orthogonalised(state.basis, w, i + 1)
    c = rest.at[i].add(own).at[before].add(coupling)[:-1]
    matrix = state.matrix_MM.at[:, i].set(c).at[i, :].set(c)
    # Nothing is new: an invariant space. What follows starts another, with coupling 0.
    spent = (beta <= 10 * jnp.finfo(beta.dtype).eps * jnp.sqrt(jnp.sum(jnp.square(c)))) | (i + 1 >= tree.count(w))

    def another(_: Any) -> Any:
        _, other, norm = orthogonalised(state.basis, scrambled(q, i), i + 1)
        return jnp.zeros((), bool), other, norm

    # A loop of at most one turn: a conditional would copy what it passes on.
    _, left, norm = jax.lax.while_loop(lambda s: s[0], another, (spent, left, beta))
    following = scaled(1 / jnp.where(norm > 0, norm, 1), left)
    beta = jnp.where(spent, 0, beta)
    return _State(put_row(state.basis, i + 1, following), matrix, i + 1, beta, state.products + 1)


def _judged(state: _State, k: int, tolerance: Any) -> _Search:
    values, s_MM = _ritz(state)
    used = jnp.arange(values.shape[0], dtype=jnp.int32) < state.size
    residuals = jnp.where(used[:k], state.beta * jnp.abs(s_MM[state.size - 1, :k]), jnp.inf)
    largest = jnp.max(jnp.where(used, jnp.abs(values), 0))
    rounding = 8 * jnp.finfo(values.dtype).eps * largest
    wanted = jnp.maximum(jnp.asarray(tolerance, values.dtype) * jnp.abs(values[:k]), rounding)
    return _Search(state, values, s_MM, residuals, jnp.all(residuals <= wanted))


def _ritz(state: _State) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues of T in decreasing order, `[M]`, and its eigenvectors `[M, M]`; those not in use come last."""
    matrix = state.matrix_MM
    used = jnp.arange(matrix.shape[0], dtype=jnp.int32) < state.size
    below = -2 * jnp.sqrt(jnp.sum(jnp.square(matrix))) - jnp.finfo(matrix.dtype).tiny
    both = used[:, None] & used[None, :]
    rest = jnp.diag(jnp.full(used.shape, below, matrix.dtype))
    values, s_MM = linalg.eigh(jnp.where(both, matrix, rest))
    return values[::-1], jnp.where(used[:, None], s_MM[:, ::-1], 0)


def _restarted(search: _Search, keep: int) -> _State:
    """Keep the best Ritz vectors, whose T is diagonal, and the vector that follows."""
    state, values, s_MM = search.state, search.values, search.s_MM
    places = jnp.arange(values.shape[0] + 1, dtype=jnp.int32)
    follows = (places == state.size).astype(values.dtype)[:, None]
    kept_and_next = jnp.concatenate([jnp.pad(s_MM[:, :keep], ((0, 1), (0, 0))), follows], axis=1)
    # All in one product, after which the old basis is read no more and the new one takes its place.
    new = combinations(state.basis, kept_and_next)
    basis = jax.tree.map(lambda b, x: jax.lax.dynamic_update_slice_in_dim(b, x, 0, 0), state.basis, new)
    matrix = jnp.diag(jnp.where(places[:-1] < keep, values, 0))
    return state._replace(basis=basis, matrix_MM=matrix, size=jnp.full_like(state.size, keep))


class Quadrature(NamedTuple):
    """Gauss quadrature of the measure that a vector q of length 1 sees: qᵀ f(A) q ≈ Σ_m weight_m f(node_m).

    nodes, weights: `[..., M]`; exact for polynomials f up to degree 2M - 1.
    """

    nodes: jax.Array
    weights: jax.Array


def quadrature(product: Product, start: Any, steps: int) -> Quadrature:
    """Run Lanczos from a vector and return its quadrature (Golub and Welsch 1969).

    Args:
      product: `v -> A v`, traced.
      start: q, of any length.
      steps: M. Where the Krylov space of q is smaller, the nodes beyond it have weight 0.
    """
    state = _begun(start, start, steps)
    state = jax.lax.fori_loop(0, steps, lambda _, s: _expanded(product, s), state)
    nodes, s_MM = linalg.eigh(state.matrix_MM)
    return Quadrature(nodes, jnp.square(s_MM[0]))
