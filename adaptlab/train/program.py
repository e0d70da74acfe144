"""A run as a compiled program of its numbers: runs that differ only in numbers share it."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from adaptlab.adapt import Adaptation
from adaptlab.flops import count_flops
from adaptlab.rng import key_for
from adaptlab.shard import Placement
from adaptlab.train.objective import Loss, make_objective
from adaptlab.train.step import TrainState, init_state, make_step

__all__ = ["Compiled", "Numbers", "Program", "compile_program", "device_numbers", "make_program"]

Numbers = Mapping[str, Any]


class Program(NamedTuple):
    """The jitted functions of a run. `numbers` and `seed` are arguments: changing them never recompiles.

    Attributes:
      init: `(numbers, seed, base) -> TrainState`.
      step: `(numbers, seed, state, base, batch) -> (state, metrics)`; donates the state, never the base.
      bind: `(numbers, base, delta) -> params`, not jitted: for use inside a measurement's own program.
    """

    init: Callable[[Numbers, Any, Any], TrainState]
    step: Callable[[Numbers, Any, TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]
    bind: Callable[[Numbers, Any, Any], Any]


def make_program(
    loss: Loss,
    adapt: Callable[[Numbers], Adaptation],
    optim: Callable[[Numbers], optax.GradientTransformation],
    *,
    accumulate: int = 1,
    placement: Placement | None = None,
) -> Program:
    """Compile a way of adapting.

    Args:
      loss: see `make_objective`.
      adapt: `numbers -> Adaptation`; called inside the trace.
      optim: `numbers -> optimiser`; called inside the trace.
      accumulate: microbatches per update.
      placement: where deltas and optimiser states live on a mesh; None leaves it to JAX.
    """

    def init(numbers: Numbers, seed: Any, base: Any) -> TrainState:
        adaptation, optimizer = adapt(numbers), optim(numbers)
        state = init_state(adaptation.init(key_for(seed, "init"), base), optimizer)
        if placement is None:
            return state
        return jax.lax.with_sharding_constraint(state, _where(state, adaptation, optimizer, placement))

    def step(numbers: Numbers, seed: Any, state: TrainState, base: Any, batch: Any) -> Any:
        one = make_step(make_objective(loss, adapt(numbers)), optim(numbers), accumulate=accumulate)
        return one(state, base, batch, key_for(seed, "step", state.step))

    def bind(numbers: Numbers, base: Any, delta: Any) -> Any:
        return adapt(numbers).bind(base, delta)

    return Program(jax.jit(init), jax.jit(step, donate_argnums=2), bind)


def _where(
    state: TrainState, adaptation: Adaptation, optimizer: optax.GradientTransformation, placement: Placement
) -> Any:
    """Where a state rests: the optimiser's moments lie where their parameters lie, scalars are everywhere."""
    everywhere = placement.replicated
    delta = placement.shardings(adaptation.axes(placement.axes), state.delta)
    opt_state = optax.tree_map_params(
        optimizer, lambda _, there: there, state.opt_state, delta, transform_non_params=lambda _: everywhere
    )
    return state._replace(step=everywhere, delta=delta, opt_state=opt_state, diverged_at=everywhere)


def device_numbers(numbers: Mapping[str, float], seed: int) -> tuple[dict[str, jax.Array], jax.Array]:
    """Return a run's numbers (float32) and seed (uint32) as the scalars its program takes."""
    return {k: jax.device_put(np.float32(v)) for k, v in numbers.items()}, jax.device_put(np.uint32(seed))


class Compiled(NamedTuple):
    """A program whose step is compiled for its shapes, and what one step costs.

    Attributes:
      program: with the compiled step: another shape is an error, never a silent second compilation.
      flops: matrix-product FLOPs of one step (`adaptlab.flops`).
      memory_bytes: what the step needs at its peak on one device: arguments, results and temporaries, by the
        compiler's own account.
      seconds: how long compiling (or reading it from the cache) took.
    """

    program: Program
    flops: int
    memory_bytes: int
    seconds: float


def compile_program(program: Program, numbers: Numbers, seed: Any, base: Any, batch: Any) -> Compiled:
    """Compile a program's step ahead of time, for arrays like these."""
    start = time.perf_counter()
    init = program.init.lower(numbers, seed, base).compile()
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(program.init, numbers, seed, base),
        init.output_shardings,
    )
    arguments = (numbers, seed, state, base, batch)
    step = program.step.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = step.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    return Compiled(program._replace(init=init, step=step), count_flops(program.step, *arguments), peak, seconds)
