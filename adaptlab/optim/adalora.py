"""AdamW that allocates a budget of ranks among the matrices while they train."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaptlab import tree
from adaptlab.config import GIVEN, BelowOne, NonNegative, Positive, Share, Traced
from adaptlab.optim.groups import Groups
from adaptlab.optim.optimisers import adamw
from adaptlab.optim.schedules import Schedule

__all__ = ["RankState", "adalora", "allocate_ranks"]

PyTree = Any


class RankState(NamedTuple):
    """What rank allocation remembers.

    Attributes:
      count: int32, the updates done.
      sensitivity: Ī of every element of P, λ and Q, and no array for other leaves.
      uncertainty: Ū, likewise.
      kept: for every λ, whether its triple was kept when ranks were last allocated.
      inner: the state of the optimiser inside.
    """

    count: jax.Array
    sensitivity: PyTree
    uncertainty: PyTree
    kept: PyTree
    inner: Any


def adalora(
    lr: NonNegative,
    *,
    total_steps: Annotated[int, GIVEN],
    target_rank: Traced = 8.0,
    warmup: Share = 0.1,
    final: NonNegative = 0.3,
    every: Traced = 10.0,
    importance_b1: BelowOne = 0.85,
    importance_b2: BelowOne = 0.85,
    schedule: Schedule | None = None,
    b1: BelowOne = 0.9,
    b2: BelowOne = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    clip: Positive | None = None,
    groups: Groups | None = None,
) -> optax.GradientTransformation:
    """AdamW with AdaLoRA's rank allocation behind it: `allocate_ranks(adamw(…))`, for the adaptation `adalora`.

    Args:
      lr: the peak learning rate.
      total_steps: the number of updates.
      target_rank: see `allocate_ranks`, like the next five.
      warmup: the fraction of all updates in which all ranks train.
      final: the fraction of all updates, the last ones, in which the ranks stay as they are.
      every: updates between two allocations.
      importance_b1: β₁ of the sensitivity.
      importance_b2: β₂ of the uncertainty.
      schedule: see `adaptlab.optim.adamw`, like all that follow.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled.
      clip: the largest global gradient norm.
      groups: the parameter groups.
    """
    return allocate_ranks(
        adamw(
            lr,
            total_steps=total_steps,
            schedule=schedule,
            b1=b1,
            b2=b2,
            eps=eps,
            weight_decay=weight_decay,
            clip=clip,
            groups=groups,
        ),
        total_steps=total_steps,
        target_rank=target_rank,
        warmup=warmup,
        final=final,
        every=every,
        b1=importance_b1,
        b2=importance_b2,
    )


def allocate_ranks(
    inner: optax.GradientTransformation,
    *,
    total_steps: int,
    target_rank: Traced,
    warmup: Share = 0.1,
    final: NonNegative = 0.3,
    every: Traced = 10.0,
    b1: BelowOne = 0.85,
    b2: BelowOne = 0.85,
) -> optax.GradientTransformation:
    """Set λ of the least important triples to zero after the updates of an optimiser (arXiv:2303.10512, alg. 1).

    An element w of P, λ or Q with gradient g has the importance s(w) = Ī · Ū, where (eq. 8 to 10)

        I = |w g|,  Ī ← β₁ Ī + (1 - β₁) I,  Ū ← β₂ Ū + (1 - β₂) |I - Ī|,

    and a triple S = s(λᵢ) + mean s(P[:, i]) + mean s(Q[i, :]) (eq. 7). Of all triples of all matrices, the b(t) most
    important stay after update t = 1 … T (eq. 12): all of them up to t_i; then b_T + (b_0 - b_T) (1 - (t - t_i) /
    (T - t_i - t_f))³, rounded down; and b_T = target_rank · (number of matrices) in the last t_f. Between two
    allocations every λ trains, so that a triple can come back; in the last t_f only those that were kept do.

    The triples are the leaves `<path>/p`, `<path>/lambda` and `<path>/q` of the parameters, as the adaptation `adalora`
    names them; others are left to `inner`. Each layer of a stack is a matrix.

    Args:
      inner: the optimiser.
      total_steps: T.
      target_rank: the average rank that stays.
      warmup: t_i / T.
      final: t_f / T; warmup and final together at most 1.
      every: ΔT, the updates between two allocations.
      b1: β₁.
      b2: β₂.

    Raises:
      ValueError: when initialised, if the parameters have no triples.
    """

    def init(params: PyTree) -> RankState:
        stems = _stems(params)
        if not stems and jax.tree.leaves(params):  # Optax asks what the state is like with a tree of nothing
            raise ValueError(f"allocate_ranks finds no AdaLoRA (p, lambda, q) among {sorted(tree.flatten(params))}.")
        in_triple = {f"{stem}/{name}" for stem in stems for name in ("p", "lambda", "q")}

        def where(paths: set[str], make: Any) -> PyTree:
            return tree.map_with_path(lambda path, x: make(x) if path in paths else optax.MaskedNode(), params)

        return RankState(
            jnp.zeros((), jnp.int32),
            where(in_triple, jnp.zeros_like),
            where(in_triple, jnp.zeros_like),
            where({f"{stem}/lambda" for stem in stems}, lambda x: jnp.ones_like(x, bool)),
            inner.init(params),
        )

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, RankState]:
        if params is None:
            raise ValueError("allocate_ranks: update(updates, state, params) needs the params whose importance counts.")
        grads = updates
        updates, inner_state = inner.update(grads, state.inner, params)
        t = (state.count + 1).astype(jnp.float32)
        begin, settled = jnp.round(warmup * total_steps), total_steps - jnp.round(final * total_steps)
        mean, spread = _averaged(state, params, grads, b1, b2, t < settled)
        scores = {stem: _importance(stem, mean, spread) for stem in _stems(params)}
        size = sum(x.size for x in scores.values())
        lasting = target_rank * sum(x.size // x.shape[-1] for x in scores.values())
        left = jnp.clip(1.0 - (t - begin) / jnp.maximum(settled - begin, 1.0), 0.0, 1.0)
        best = _best(scores, jnp.floor(lasting + (size - lasting) * left**3))
        allocating = (t > begin) & (t <= settled) & ((t % every == 0) | (t == settled))
        flat_w, flat_u, kept = (tree.flatten(x) for x in (params, updates, state.kept))
        for path in kept:
            kept[path] = jnp.where(allocating, best[path], kept[path])
            gone = (allocating | (t > settled)) & ~kept[path]
            # w + (-w) is exactly zero.
            flat_u[path] = jnp.where(gone, -flat_w[path], flat_u[path])
        averages = _like(state.sensitivity, mean), _like(state.uncertainty, spread)
        state = RankState(state.count + 1, *averages, _like(state.kept, kept), inner_state)
        return _like(updates, flat_u), state

    return optax.GradientTransformation(init, update)


def _stems(params: PyTree) -> list[str]:
    flat = tree.flatten(params)
    stems = [path.removesuffix("/lambda") for path in flat if path.endswith("/lambda")]
    return [stem for stem in stems if f"{stem}/p" in flat and f"{stem}/q" in flat]


def _averaged(
    state: RankState, params: PyTree, grads: PyTree, b1: Any, b2: Any, measuring: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Ī and Ū after an update, by path; as they were if it is too late to measure."""
    mean, spread = tree.flatten(state.sensitivity), tree.flatten(state.uncertainty)
    flat_w, flat_g = tree.flatten(params), tree.flatten(grads)
    for path, before in mean.items():
        now = jnp.abs(flat_w[path] * flat_g[path])
        mean[path] = jnp.where(measuring, b1 * before + (1.0 - b1) * now, before)
        apart = b2 * spread[path] + (1.0 - b2) * jnp.abs(now - mean[path])
        spread[path] = jnp.where(measuring, apart, spread[path])
    return mean, spread


def _importance(stem: str, mean: dict[str, Any], spread: dict[str, Any]) -> jax.Array:
    """S of every triple of a stack of matrices, `[*L, R]`."""
    p, values, q = (mean[f"{stem}/{name}"] * spread[f"{stem}/{name}"] for name in ("p", "lambda", "q"))
    return values + jnp.mean(p, axis=-2) + jnp.mean(q, axis=-1)


def _best(scores: dict[str, jax.Array], budget: jax.Array) -> dict[str, jax.Array]:
    """Which triples are among the `budget` most important of all, by the path of their λ; of equals, the first."""
    every = jnp.concatenate([x.reshape(-1) for x in scores.values()])
    place = jnp.argsort(jnp.argsort(-every, stable=True), stable=True)
    chosen, done, start = place.astype(jnp.float32) < budget, {}, 0
    for stem, x in scores.items():
        done[f"{stem}/lambda"] = chosen[start : start + x.size].reshape(x.shape)
        start += x.size
    return done


def _like(old: PyTree, flat: dict[str, Any]) -> PyTree:
    return tree.map_with_path(lambda path, _: flat[path], old)
