"""Low-rank adaptation that starts from a matrix's leading singular triples."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adaptlab import leaf, linalg, tree
from adaptlab.adapt.adaptation import Adaptation, axes_of
from adaptlab.adapt.matrices import EffectiveRank, count_ranks, keep_ranks, matrix_shape, targets
from adaptlab.config import Traced
from adaptlab.rng import key_for

__all__ = ["leading_triples", "pissa"]

_OVERSAMPLING = 10  # columns of the random sketch beyond the rank (arXiv:0909.4061, sec. 4.2: 5 to 10 are enough)


def pissa(
    rank: int = 8,
    *,
    alpha: Traced | None = None,
    effective_rank: EffectiveRank | None = None,
    select: str | Sequence[str] = "layers/.*/kernel",
    iterations: int | None = None,
) -> Adaptation:
    """(W - A₀ B₀) + s · A B, where s A B starts as A₀ B₀ (PiSSA, arXiv:2404.02948, eq. 2-4).

    A₀ B₀ = U_R Σ_R V_Rᵀ is W's best approximation of rank R, split evenly: A₀ = U_R √Σ_R, B₀ = √Σ_R V_Rᵀ. So the
    principal part of W trains and its residual is frozen, while LoRA trains from zero beside W.

    Neither the residual nor a copy of W is stored: `prepare` puts the factors A₀ and B₀ beside W, which can go on to
    serve other runs. (The paper stores W - A₀ B₀.) With A₁ = A₀/√s and B₁ = B₀/√s, where A and B start, the model
    computes the side path

        s · x [A - A₁, A₁] [B; B - B₁] = x (s A B - A₀ B₀),

    which is exactly zero at the start, and in low precision loses nothing of a small change to the two large terms it
    is the difference of.

    A saved delta belongs to the factors that `prepare` finds again; `as_lora` makes it independent of them. L2-SP
    (`adaptlab.train.l2_sp`) holds A and B to A₀ and B₀.

    Args:
      rank: R, at most the smaller side of any selected matrix.
      alpha: s = alpha / R, and A and B start as A₀/√s and B₀/√s; None is R, the paper's s = 1.
      effective_rank: at most `rank`: only so many triples are taken out of W and trained, and it takes R's place in the
        scale. None uses all.
      select: patterns of the matrices' whole paths; leading axes (a stack of layers) are batch axes.
      iterations: subspace iterations of a randomised factorisation, 2 to 16 (the paper's fast SVD, table 5); None
        computes the whole one.

    Raises:
      ValueError: a rank below 1 or above a matrix's smaller side, negative iterations, a pattern that matches nothing,
        or a selected leaf that is not a matrix.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1; use frozen() to train nothing.")
    if iterations is not None and iterations < 0:
        raise ValueError(f"iterations={iterations} must be 0 or more; null computes the whole factorisation.")
    used = rank if effective_rank is None else effective_rank
    scale = jnp.float32(1.0 if alpha is None else alpha / used)
    root = jnp.sqrt(scale)

    def prepare(base: Any) -> Any:
        chosen = targets(tree.flatten(base, leaf.is_node), select)

        def node(path: str, w: Any) -> Any:
            if path not in chosen:
                return w
            shape = matrix_shape(path, w, "pissa")
            if rank > min(shape[-2:]):
                raise ValueError(f"rank={rank}: {path!r} of shape {shape} has only {min(shape[-2:])} singular values.")
            a, b = _stack_of_triples(leaf.dense(w), key_for(0, path), rank=rank, iterations=iterations)
            return leaf.Factored(w, a, b)

        return tree.map_with_path(node, base, is_leaf=leaf.is_node)

    def init(key: jax.Array, base: Any) -> Any:
        del key  # nothing is drawn
        start = {path: _factored(path, w) for path, w in targets(tree.flatten(base, leaf.is_node), select).items()}
        return tree.unflatten({path: {"a": w.a / root, "b": w.b / root} for path, w in start.items()})

    def bind(base: Any, delta: Any) -> Any:
        flat_delta = tree.flatten(delta)

        def node(path: str, w: Any) -> Any:
            a, b = flat_delta.get(f"{path}/a"), flat_delta.get(f"{path}/b")
            if a is None or b is None:
                return w
            start = _factored(path, w)
            a_1, b_1 = start.a / root, start.b / root
            first = jnp.concatenate([a - a_1, a_1], axis=-1)
            second = jnp.concatenate([keep_ranks(b, effective_rank), keep_ranks(b - b_1, effective_rank)], axis=-2)
            return leaf.LowRank(start.w, first, second, jnp.full(a.shape[:-2], scale))

        return tree.map_with_path(node, base, is_leaf=leaf.is_node)

    def axes(base_axes: Any) -> Any:
        delta = {}
        for path, (*lead, d, f) in targets(axes_of(base_axes), select).items():
            delta[path] = {"a": (*lead, d, "rank"), "b": (*lead, "rank", f)}
        return tree.unflatten(delta)

    return Adaptation(init, bind, axes, prepare=prepare, count=lambda base, delta: count_ranks(delta, effective_rank))


def leading_triples(
    w_DF: jax.Array, key: jax.Array, *, rank: int, iterations: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return U_R √Σ_R `[D, R]` and √Σ_R V_Rᵀ `[R, F]` of a matrix's R leading singular triples, in float32.

    Args:
      w_DF: the matrix.
      key: of the random sketch.
      rank: R.
      iterations: None is the exact factorisation. Otherwise W's range is found by so many subspace iterations from a
        Gaussian sketch, and W factorised inside it (arXiv:0909.4061, alg. 4.4 and 5.1).
    """
    w_DF = w_DF.astype(jnp.float32)
    if iterations is None:
        u_DR, s_R, v_RF = linalg.svd(w_DF)
    else:
        # X columns in the sketch.
        X = min(rank + _OVERSAMPLING, *w_DF.shape)
        q_DX = linalg.qr(w_DF @ jax.random.normal(key, (w_DF.shape[1], X)))[0]
        for _ in range(iterations):
            # Orthogonal after each product: otherwise small singular values drown in rounding.
            q_DX = linalg.qr(w_DF @ linalg.qr(w_DF.T @ q_DX)[0])[0]
        u_XR, s_R, v_RF = linalg.svd(q_DX.T @ w_DF)
        u_DR = q_DX @ u_XR
    root_R = jnp.sqrt(s_R[:rank])
    return u_DR[:, :rank] * root_R[None], root_R[:, None] * v_RF[:rank]


@functools.partial(jax.jit, static_argnames=("rank", "iterations"))
def _stack_of_triples(
    w: jax.Array, key: jax.Array, *, rank: int, iterations: int | None
) -> tuple[jax.Array, jax.Array]:
    """`leading_triples` of `[*L, D, F]`, one matrix at a time: the temporaries are those of one."""
    *lead, d, f = w.shape
    keys = jax.random.split(key, max(1, w.size // (d * f)))
    triples = functools.partial(leading_triples, rank=rank, iterations=iterations)
    a, b = jax.lax.map(lambda x: triples(*x), (w.reshape(-1, d, f), keys))
    return a.reshape(*lead, d, rank), b.reshape(*lead, rank, f)


def _factored(path: str, w: Any) -> leaf.Factored:
    if isinstance(w, leaf.Factored):
        return w
    raise ValueError(f"{path!r} is as the base has it: bind PiSSA to prepared(adaptation, base).")
