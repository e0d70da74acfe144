"""Muon: momentum made orthogonal, for matrices."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import optax
from optax import contrib

from adaptlab import tree
from adaptlab.config import GIVEN, BelowOne, NonNegative, Positive, Traced
from adaptlab.optim.assemble import assemble, momentum_core
from adaptlab.optim.groups import Groups, bias_corrected
from adaptlab.optim.schedules import Schedule

__all__ = ["muon"]

Make = Callable[[Groups | None], optax.GradientTransformation]


def muon(
    lr: NonNegative,
    *,
    total_steps: Annotated[int, GIVEN],
    schedule: Schedule | None = None,
    select: str | Sequence[str] = "(?!head/)(.*/)?kernel(/[ab])?",
    momentum: BelowOne = 0.95,
    nesterov: bool = True,
    iterations: int = 5,
    rms: Traced | None = 0.2,
    adam_lr: NonNegative = 1.0,
    b1: BelowOne = 0.9,
    b2: BelowOne = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    clip: Positive | None = None,
    momentum_schedule: Schedule | None = None,
    groups: Groups | None = None,
) -> optax.GradientTransformation:
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon; arXiv:2502.16982) for matrices, Adam for the rest.

    The momentum of a matrix, U S Vᵀ, is replaced by (about) U Vᵀ, by Newton-Schulz iterations of a quintic. In a stack
    `[L, D, F]` each matrix is made orthogonal on its own.

    Args:
      lr: the peak learning rate.
      total_steps: the number of updates.
      schedule: the factor of `lr`.
      select: patterns of whole `/`-joined paths of the matrices. By default kernels and the factors of low-rank
        adapters, but not the head: embeddings and heads are Adam's, as is everything else.
      momentum: decay of the average of the gradients of matrices.
      nesterov: look ahead by one gradient.
      iterations: Newton-Schulz iterations.
      rms: the updates of a matrix have about this root mean square, √max(D, F) · rms for U Vᵀ (arXiv:2502.16982,
        eq. 4): 0.2 is AdamW's, so that its learning rate and weight decay fit. None multiplies by √max(1, F / D).
      adam_lr: Adam's learning rate as a multiple of `lr`.
      b1: Adam's decay of the first moment.
      b2: Adam's decay of the second moment.
      eps: Adam's, added to the root of the second moment.
      weight_decay: decoupled, times the scheduled learning rate, of all parameters.
      clip: the largest global gradient norm; None does not clip.
      momentum_schedule: the momentum of matrices over the updates, in place of `momentum`.
      groups: the parameter groups.

    Raises:
      ValueError: when the state is made, if a pattern matches nothing or a selected array is no matrix.
    """

    def orthogonal(momentum: BelowOne) -> optax.GradientTransformation:
        return optax.chain(
            contrib.scale_by_muon(
                ns_steps=iterations, beta=momentum, nesterov=nesterov, weight_dimension_numbers=_last_two_axes
            ),
            optax.stateless(lambda updates, params: jax.tree.map(lambda u: _shape_factor(u, rms) * u, updates)),
        )

    def matrices(groups: Groups | None) -> optax.GradientTransformation:
        return momentum_core(orthogonal, momentum, momentum_schedule, groups=groups, total_steps=total_steps)

    def rest(groups: Groups | None) -> optax.GradientTransformation:
        adam = bias_corrected(optax.scale_by_adam(b1=b1, b2=b2, eps=eps), groups, total_steps)
        return optax.chain(adam, optax.scale(adam_lr))

    core = _by_path(select, matrices, rest, groups)
    return assemble(
        core, lr, total_steps=total_steps, schedule=schedule, weight_decay=weight_decay, clip=clip, groups=groups
    )


class ByPathState(NamedTuple):
    """The states of the two parts, each with `optax.MaskedNode` in place of the other's arrays."""

    matrices: Any
    rest: Any


def _by_path(
    select: str | Sequence[str], matrices: Make, rest: Make, groups: Groups | None
) -> optax.GradientTransformation:
    """One core for the selected paths, another for the others, each with its own part of the groups."""

    def parts(full: Any) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
        return matrices(_masked_groups(groups, full, select, True)), rest(_masked_groups(groups, full, select, False))

    def init(params: Any) -> ByPathState:
        _check(params, select)
        first, second = parts(params)
        return ByPathState(first.init(_masked(params, select, True)), second.init(_masked(params, select, False)))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ByPathState]:
        done, states = [], []
        for keep, part, own in zip((True, False), parts(updates), state, strict=True):
            weights = None if params is None else _masked(params, select, keep)
            u, new = part.update(_masked(updates, select, keep), own, weights)
            done.append(u)
            states.append(new)
        joined = jax.tree.map(lambda a, b: b if _is_mask(a) else a, *done, is_leaf=_is_mask)
        return joined, ByPathState(*states)

    return optax.GradientTransformation(init, update)


def _masked(params: Any, select: str | Sequence[str], keep: bool) -> Any:
    """The tree with `MaskedNode`, which has no leaves, in place of what is (or is not) selected."""
    flat = tree.flatten(params)
    if not flat:
        return params
    owner = tree.select(flat, select)
    return tree.map_with_path(lambda path, x: x if (owner[path] is not None) == keep else optax.MaskedNode(), params)


def _masked_groups(groups: Groups | None, full: Any, select: str | Sequence[str], keep: bool) -> Groups | None:
    """Groups of one part whose starts are those in the full tree: patterns see every path."""
    if groups is None:
        return None
    return groups._replace(start=lambda part, total: _masked(groups.start(full, total), select, keep))


def _check(params: Any, select: str | Sequence[str]) -> None:
    flat = tree.flatten(params)
    owner = tree.select(flat, select) if flat else {}
    if wrong := {path: flat[path].shape for path, i in owner.items() if i is not None and flat[path].ndim < 2}:
        raise ValueError(f"muon selects arrays that are no matrices: {wrong}; narrow `select`={select!r}.")


def _last_two_axes(params: Any) -> Any:
    return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(-2, -1), params)


def _shape_factor(u: jax.Array, rms: Traced | None) -> Any:
    *_, d, f = u.shape
    return max(1.0, f / d) ** 0.5 if rms is None else max(d, f) ** 0.5 * rms


def _is_mask(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)
