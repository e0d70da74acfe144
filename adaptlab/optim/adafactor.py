"""Adafactor: the second moment of a matrix as an outer product of its row and column means."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from adaptlab.config import GIVEN, BelowOne, NonNegative, Positive, Traced
from adaptlab.optim.assemble import assemble
from adaptlab.optim.groups import Groups, bias_corrected
from adaptlab.optim.schedules import Schedule

__all__ = ["adafactor"]


def adafactor(
    lr: NonNegative,
    *,
    total_steps: Annotated[int, GIVEN],
    schedule: Schedule | None = None,
    decay_rate: Traced = 0.8,
    threshold: Positive = 1.0,
    scale_parameters: bool = True,
    momentum: BelowOne | None = None,
    eps: NonNegative = 1e-30,
    min_scale: NonNegative = 1e-3,
    min_size_to_factor: int = 128,
    weight_decay: NonNegative = 0.0,
    clip: Positive | None = None,
    groups: Groups | None = None,
) -> optax.GradientTransformation:
    """Adafactor (arXiv:1804.04235, alg. 4 and 5).

    The update of a matrix is u = g / √v̂, where v̂ is the outer product of the row and column means of the second
    moment; it is divided by max(1, rms(u) / threshold) and multiplied by max(min_scale, rms(w)). In a stack of
    matrices `[L, D, F]` each has its own rms; an array of rank 2 or less is one block, also if it stacks vectors.

    Args:
      lr: the peak learning rate, relative to the size of the parameters (unless `scale_parameters` is false).
      total_steps: the number of updates.
      schedule: the factor of `lr`.
      decay_rate: the second moment of update t = 1, 2, … decays by 1 - t^(-decay_rate).
      threshold: the largest rms of an update.
      scale_parameters: whether updates are multiplied by the rms of their parameters.
      momentum: decay of an average of the updates; None averages nothing and needs no memory for it.
      eps: added to the squared gradient, ε₁.
      min_scale: the least rms of parameters, ε₂: what starts at zero could not move otherwise.
      min_size_to_factor: an array is factored over its two largest axes if both are at least this long.
      weight_decay: decoupled, times the scheduled learning rate.
      clip: the largest global gradient norm; None does not clip.
      groups: the parameter groups. Layers of one array that start apart are each a block, and t counts from its start.

    Raises:
      ValueError: when updating, if layers start apart in an array so deep that it is factored over its layers.
    """
    factored: Any = optax.scale_by_factored_rms
    parts = [factored(decay_rate=decay_rate, epsilon=eps, min_dim_size_to_factor=min_size_to_factor)]
    parts += [_clip_by_block_rms(threshold)]
    parts += [_scale_by_block_rms(min_scale)] if scale_parameters else []
    parts += [] if momentum is None else [optax.ema(momentum, debias=False)]
    core = _moments_of_no_one(bias_corrected(optax.chain(*parts), groups, total_steps))
    return assemble(
        core, lr, total_steps=total_steps, schedule=schedule, weight_decay=weight_decay, clip=clip, groups=groups
    )


def _moments_of_no_one(core: optax.GradientTransformation) -> optax.GradientTransformation:
    """Hide whose the factored moments are: they do not have their parameters' shapes, so on a mesh they lie everywhere.

    What maps over parameters (`optax.tree_map_params`) asks for the state of a tree without leaves; there each tree of
    moments is one leaf.
    """

    def hidden(state: Any) -> Any:
        if not isinstance(state, optax.FactoredState):
            return state
        return optax.FactoredState(state.count, *[jnp.zeros(())] * 3)

    def init(params: Any) -> Any:
        state = core.init(params)
        if jax.tree.leaves(params):
            return state
        return jax.tree.map(hidden, state, is_leaf=lambda x: isinstance(x, optax.FactoredState))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return core.update(updates, state, params) if jax.tree.leaves(updates) else (updates, state)

    return optax.GradientTransformation(init, update)


def _block_rms(x: jax.Array) -> jax.Array:
    """The root mean square of each matrix of a stack, or of the whole array, in its rank."""
    return jnp.sqrt(jnp.mean(x * x, axis=(-2, -1) if x.ndim > 2 else None, keepdims=True))


def _clip_by_block_rms(threshold: Positive) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u: u / jnp.maximum(1.0, _block_rms(u) / threshold), updates)
    )


def _scale_by_block_rms(least: Traced) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, w: u * jnp.maximum(_block_rms(w), least), updates, params)
    )
