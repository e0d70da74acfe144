"""A run as a compiled program of its numbers: runs that differ only in numbers share it."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from adaptlab.adapt import Adaptation, prepared
from adaptlab.flops import count_flops
from adaptlab.optim import eval_params
from adaptlab.rng import key_for
from adaptlab.shard import Placement, on, pin, put
from adaptlab.train.objective import Loss, Term, make_objective
from adaptlab.train.step import TrainState, init_state, make_step
from adaptlab.train.stopping import EarlyStopping, Watch

__all__ = [
    "Compiled",
    "Numbers",
    "Program",
    "abstract_state",
    "compile_program",
    "device_numbers",
    "make_program",
    "peak_bytes",
    "scalar_put",
    "state_shardings",
]

Numbers = Mapping[str, Any]


class Program(NamedTuple):
    """The jitted functions of a run. `numbers` and `seed` are arguments: changing them never recompiles.

    Attributes:
      init: `(numbers, seed, base, moments) -> TrainState`; `moments` is what `carry` takes over, or None.
      step: `(numbers, seed, state, base, batch) -> (state, metrics)`; donates the state, never the base.
      bind: `(numbers, base, delta) -> params`, not jitted: for use inside a measurement's own program.
      observe: `(numbers, state, value) -> state`, early stopping's view of a measurement; donates the state.
      watched: the name of the metric `observe` takes, or None: no early stopping.
      prepare: `(numbers, base) -> base'`, called once before anything else: the base all other functions take. It is
        the same for all numbers (`adaptlab.adapt.Adaptation`), and shares what the adaptation leaves as it is.
    """

    init: Callable[..., TrainState]
    step: Callable[[Numbers, Any, TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]
    bind: Callable[[Numbers, Any, Any], Any]
    observe: Callable[[Numbers, TrainState, Any], TrainState] | None = None
    watched: str | None = None
    prepare: Callable[[Numbers, Any], Any] = lambda numbers, base: base


def make_program(
    loss: Callable[[Numbers], Loss],
    adapt: Callable[[Numbers], Adaptation],
    optim: Callable[[Numbers], optax.GradientTransformation],
    *,
    terms: Callable[[Numbers], Sequence[Term]] = lambda numbers: (),
    stopping: tuple[str, Callable[[Numbers], EarlyStopping]] | None = None,
    carry: Callable[[Numbers, Any, Any], Any] | None = None,
    accumulate: int = 1,
    placement: Placement | None = None,
) -> Program:
    """Compile a way of adapting. All factories are called inside the trace, with traced numbers.

    Args:
      loss: `numbers -> loss`, see `make_objective`.
      adapt: `numbers -> Adaptation`.
      optim: `numbers -> optimiser`.
      terms: `numbers -> regularisers`, see `make_objective`.
      stopping: the metric to watch and `numbers -> early stopping`; None trains to the end.
      carry: `(numbers, fresh opt_state, moments) -> opt_state`: how a new run takes over an earlier training's state.
      accumulate: microbatches per update.
      placement: where deltas and optimiser states live on a mesh; None leaves it to JAX.
    """

    def pinned(state: TrainState, numbers: Numbers) -> TrainState:
        if placement is None:
            return state
        state = pin(state, state_shardings(state, adapt(numbers), optim(numbers), placement))
        if placement.moments_on_host:
            state = state._replace(opt_state=jax.device_put(state.opt_state, jax.memory.Space.Host))
        return state

    def init(numbers: Numbers, seed: Any, base: Any, moments: Any = None) -> TrainState:
        adaptation, optimizer = adapt(numbers), optim(numbers)
        state = init_state(adaptation.init(key_for(seed, "init"), base), optimizer)
        if carry is not None:
            state = state._replace(opt_state=carry(numbers, state.opt_state, moments))
        if stopping is not None:
            state = state._replace(watch=stopping[1](numbers).init(state.delta))
        return pinned(state, numbers)

    def step(numbers: Numbers, seed: Any, state: TrainState, base: Any, batch: Any) -> Any:
        adaptation, visiting = adapt(numbers), state
        if placement is not None and placement.moments_on_host:
            visiting = state._replace(opt_state=jax.device_put(state.opt_state, jax.memory.Space.Device))

        def as_delta(grads: Any) -> Any:
            return grads if placement is None else pin(grads, _where_moments(grads, adaptation, placement))

        objective = make_objective(loss(numbers), adaptation, terms(numbers))
        one = make_step(objective, optim(numbers), accumulate=accumulate, rest=as_delta)
        after, metrics = one(visiting, base, batch, key_for(seed, "step", state.step))
        return pinned(after, numbers), metrics

    def bind(numbers: Numbers, base: Any, delta: Any) -> Any:
        return adapt(numbers).bind(base, delta)

    def prepare(numbers: Numbers, base: Any) -> Any:
        return prepared(adapt(numbers), base)

    init, step, prepare = (on(placement, f) for f in (init, step, prepare))
    program = Program(jax.jit(init), jax.jit(step, donate_argnums=2), bind, prepare=prepare)
    if stopping is None:
        return program
    watched, early = stopping

    def observe(numbers: Numbers, state: TrainState, value: Any) -> TrainState:
        delta = eval_params(state.opt_state, state.delta)
        watch = early(numbers).observe(state.watch, value, state.step, delta)
        return state._replace(watch=watch)

    return program._replace(observe=jax.jit(observe, donate_argnums=1), watched=watched)


def state_shardings(
    state: TrainState, adaptation: Adaptation, optimizer: optax.GradientTransformation, placement: Placement
) -> Any:
    """Where a state rests: moments lie where their parameters lie, or by rules of their own; scalars are everywhere."""
    everywhere = placement.replicated
    delta = placement.shardings(adaptation.axes(placement.axes), state.delta)
    watch: Any = ()
    if isinstance(state.watch, Watch):
        watch = jax.tree.map(lambda _: everywhere, state.watch._replace(best_delta=()))._replace(best_delta=delta)
    opt_state = optax.tree_map_params(
        optimizer,
        lambda _, there: there,
        state.opt_state,
        _where_moments(state.delta, adaptation, placement),
        transform_non_params=lambda _: everywhere,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),  # where another optimiser has the leaf
    )
    return state._replace(step=everywhere, delta=delta, opt_state=opt_state, diverged_at=everywhere, watch=watch)


def _where_delta(delta: Any, adaptation: Adaptation, placement: Placement) -> Any:
    return placement.shardings(adaptation.axes(placement.axes), delta)


def _where_moments(delta: Any, adaptation: Adaptation, placement: Placement) -> Any:
    return placement.shardings(adaptation.axes(placement.axes), delta, placement.moments)


def device_numbers(
    numbers: Mapping[str, float], seed: int, beside: Any = None
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Return a run's numbers (float32) and seed (uint32) as the scalars its program takes.

    Args:
      numbers: by name.
      seed: the run's seed.
      beside: arrays; if they live on a mesh, the scalars do too, on every device of it.
    """
    there = scalar_put(beside)
    return {k: there(np.float32(v)) for k, v in numbers.items()}, there(np.uint32(seed))


def scalar_put(beside: Any) -> Callable[[np.generic], jax.Array]:
    """Return a function that puts scalars where arrays are: on every device of their mesh, if they have one."""
    sharding = next((getattr(x, "sharding", None) for x in jax.tree.leaves(beside)), None)
    if not isinstance(sharding, NamedSharding):
        return jax.device_put
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    return lambda x: put(x, everywhere)


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


def compile_program(
    program: Program, numbers: Numbers, seed: Any, base: Any, batch: Any, moments: Any = None
) -> Compiled:
    """Compile a program's step ahead of time, for arrays like these."""
    start = time.perf_counter()
    init = program.init.lower(numbers, seed, base, moments).compile()
    arguments = (numbers, seed, abstract_state(program, init, numbers, seed, base, moments), base, batch)
    step = program.step.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    flops = count_flops(program.step, *arguments)
    return Compiled(program._replace(init=init, step=step), flops, peak_bytes(step), seconds)


def abstract_state(program: Program, init: Any, numbers: Numbers, seed: Any, base: Any, moments: Any = None) -> Any:
    """Return a run's state as shapes, each with the sharding that the compiled `init` gives it."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(program.init, numbers, seed, base, moments),
        init.output_shardings,
    )


def peak_bytes(compiled: Any) -> int:
    """Return what a compiled function needs at its peak on one device, by the compiler's own account."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
