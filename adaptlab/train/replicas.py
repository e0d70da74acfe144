"""Many runs of one program at once: the sweep as an array axis.

K runs that differ in numbers and seed only sit in S slots of one program. Their states are stacked along a leading
`replica` axis, which may be sharded over devices; the base is there once, without the axis. Every tick updates all
slots that are taken. Inside, the slots are either batched (`vmap`) or taken in turn (`map`: one slot's temporaries at
a time). A slot whose run has ended is given to the next; an empty one changes nothing and costs nothing under `map`.

Letters: S slots.
"""

import functools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from adaptlab import hosts
from adaptlab.preempt import Preempted
from adaptlab.shard import Placement, put
from adaptlab.train.loop import Clock, Measure, Seat, Update
from adaptlab.train.program import Numbers, Program, abstract_state, device_numbers, peak_bytes, scalar_put

__all__ = ["How", "Replicas", "SlotProbe", "Work", "compile_replicas", "fit_replicas", "over_slots"]

How = Literal["vmap", "map"]
SlotProbe = Callable[[Any, Any, Any, Any], Callable[[int], dict[str, float]]]
"""`(numbers_S, states_S, active_S, base) -> slot -> {metric: value}`: measures all active slots at once."""


class Replicas(NamedTuple):
    """A compiled program of S slots.

    Attributes:
      slots: S.
      how: "vmap" or "map".
      empty: `() -> states_S`.
      step: `(numbers_S, seeds_S, states_S, active_S, base, batch_S) -> (states_S, metrics_S)`; donates the states.
      get: `(states_S, slot) -> state`.
      put: `(states_S, slot, state) -> states_S`; donates the states.
      spread: puts host arrays with a leading slot axis on the devices.
      memory_bytes: what a step needs at its peak on one device.
      seconds: how long compiling took.
    """

    slots: int
    how: How
    empty: Callable[[], Any]
    step: Callable[..., tuple[Any, dict[str, jax.Array]]]
    get: Callable[[Any, Any], Any]
    put: Callable[[Any, Any, Any], Any]
    spread: Callable[[Any], Any]
    memory_bytes: int
    seconds: float


class Work(NamedTuple):
    """A run that wants a slot.

    Attributes:
      numbers: its traced numbers.
      seed: its seed.
      begin: `(seat, clock) -> generator` that yields what is due, with batches on the host, and returns the run's
        result; see `loop.course`.
    """

    numbers: Mapping[str, float]
    seed: int
    begin: Callable[[Seat, Clock], Generator[Update | Measure, dict[str, Any], Any]]


def compile_replicas(
    program: Program,
    numbers: Mapping[str, float],
    base: Any,
    batch: Any,
    slots: int,
    how: How,
    *,
    placement: Placement,
    moments: Any = None,
) -> Replicas:
    """Compile S slots of a program.

    Args:
      program: what each slot runs, not yet compiled.
      numbers: any run's numbers: their names.
      base: the frozen weights, on their devices.
      batch: one run's batch, on the host.
      slots: S; a multiple of the mesh's `replica` axis.
      how: whether slots are batched or taken in turn.
      placement: the mesh.
      moments: as for `Program.init`.
    """
    begun = time.perf_counter()
    mesh, replicas = placement.mesh, placement.mesh.shape["replica"]
    if slots % replicas:
        raise ValueError(f"slots={slots} is not a multiple of mesh.replica={replicas}.")
    scalars = device_numbers(numbers, 0, base)
    init = program.init.lower(*scalars, base, moments).compile()
    one = abstract_state(program, init, *scalars, base, moments)

    def over(x: Any, spec: PartitionSpec) -> Any:
        return jax.ShapeDtypeStruct((slots, *x.shape), x.dtype, sharding=NamedSharding(mesh, spec))

    states = jax.tree.map(lambda x: over(x, PartitionSpec("replica", *_spec(x.sharding))), one)
    flat = jax.tree.map(lambda x: over(x, PartitionSpec("replica")), (*scalars, jax.ShapeDtypeStruct((), bool)))
    batches = jax.tree.map(lambda x: over(x, PartitionSpec("replica", *placement.batch.spec)), batch)
    where = jax.tree.map(lambda x: x.sharding, states)
    # What every process reads must be on each of them; otherwise no device waits for another.
    shown = placement.replicated if hosts.count() > 1 else NamedSharding(mesh, PartitionSpec("replica"))
    step = jax.jit(_stepper(program, how, placement), donate_argnums=2, out_shardings=(where, shown))
    compiled = step.lower(flat[0], flat[1], states, flat[2], base, batches).compile()
    ours = jax.tree.map(lambda x: x.sharding, one)
    spread = _spreader(placement)
    return Replicas(
        slots,
        how,
        jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), states), out_shardings=where),
        compiled,
        jax.jit(_take, out_shardings=ours),
        jax.jit(_give, donate_argnums=0, out_shardings=where),
        spread,
        peak_bytes(compiled),
        time.perf_counter() - begun,
    )


def _spec(sharding: Any) -> PartitionSpec:
    return sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()


def _take(states: Any, slot: Any) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, slot, keepdims=False), states)


def _give(states: Any, slot: Any, state: Any) -> Any:
    return jax.tree.map(lambda xs, x: jax.lax.dynamic_update_index_in_dim(xs, x, slot, 0), states, state)


def _spreader(placement: Placement) -> Callable[[Any], Any]:
    def one(x: np.ndarray) -> jax.Array:
        spec = PartitionSpec("replica", *placement.batch.spec) if x.ndim > 1 else PartitionSpec("replica")
        return put(x, NamedSharding(placement.mesh, spec))

    return lambda tree: jax.tree.map(one, tree)


def over_slots(one: Callable[[Any, Any], Any], how: How, placement: Placement) -> Callable[[Any, Any], Any]:
    """Return `(each_S, shared) -> result_S` from `one(each, shared) -> result`.

    Args:
      one: what is done in one slot.
      how: whether slots are batched or taken in turn.
      placement: the mesh, whose `replica` axis the slots are spread over.
    """

    def many(each_S: Any, shared: Any) -> Any:
        if how == "vmap":
            return jax.vmap(one, in_axes=(0, None))(each_S, shared)
        return jax.lax.map(lambda each: one(each, shared), each_S)

    if placement.mesh.shape["replica"] == 1:
        return many
    along, everywhere = PartitionSpec("replica"), PartitionSpec()
    return jax.shard_map(
        many,
        mesh=placement.mesh,
        in_specs=(along, everywhere),
        out_specs=along,
        axis_names={"replica"},
        check_vma=False,
    )


def _stepper(program: Program, how: How, placement: Placement) -> Callable[..., Any]:
    """Return the step over all slots."""

    def one(each: Any, base: Any) -> Any:
        numbers, seed, state, active, batch = each

        def update() -> Any:
            return program.step(numbers, seed, state, base, batch)

        def rest() -> Any:
            return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(update)[1])

        return jax.lax.cond(active, update, rest)

    slots = over_slots(one, how, placement)

    def step(numbers: Numbers, seeds: Any, states: Any, active: Any, base: Any, batch: Any) -> Any:
        return slots((numbers, seeds, states, active, batch), base)

    return step


class _Slots:
    """The arrays behind the slots: what stands in each, and one update, or measurement, of those that are due."""

    def __init__(self, replicas: Replicas, names: Iterable[str], base: Any) -> None:
        self._replicas, self._base, self._states = replicas, base, replicas.empty()
        self._numbers_S = {name: np.zeros(replicas.slots, np.float32) for name in names}
        self._seeds_S = np.zeros(replicas.slots, np.uint32)
        self._index = [scalar_put(base)(np.int32(slot)) for slot in range(replicas.slots)]

    def claim(self, slot: int, work: Work) -> Seat:
        """Give a slot to a run."""
        for name, value in work.numbers.items():
            self._numbers_S[name][slot] = value
        self._seeds_S[slot] = work.seed

        def put(state: Any) -> None:
            self._states = self._replicas.put(self._states, self._index[slot], state)

        return Seat(functools.partial(self.state, slot), put)

    def update(self, batches: Mapping[int, Any]) -> Mapping[str, jax.Array]:
        """Update the slots that have a batch, and return all slots' metrics."""
        some, slots = next(iter(batches.values())), range(self._replicas.slots)
        batch_S = jax.tree.map(lambda *x: np.stack(x), *(batches.get(slot, some) for slot in slots))
        numbers_S, active_S, seeds_S, batch_S = self._spread(batches, np.copy(self._seeds_S), batch_S)
        self._states, metrics_S = self._replicas.step(numbers_S, seeds_S, self._states, active_S, self._base, batch_S)
        return metrics_S

    def measure(self, probe: SlotProbe, due: Iterable[int]) -> Callable[[int], dict[str, float]]:
        """Measure the slots that are due, and return `slot -> metrics`."""
        numbers_S, active_S = self._spread(due)
        return probe(numbers_S, self._states, active_S, self._base)

    def state(self, slot: int) -> Any:
        """What stands in a slot."""
        return self._replicas.get(self._states, self._index[slot])

    def _spread(self, due: Iterable[int], *more: Any) -> Any:
        """Put the numbers, which slots are due, and more on the devices."""
        active_S = np.isin(np.arange(self._replicas.slots), list(due))
        # Copies: on a CPU device_put may alias host memory, which the next claim would change under the program.
        return self._replicas.spread((jax.tree.map(np.copy, self._numbers_S), active_S, *more))


def fit_replicas(
    replicas: Replicas,
    base: Any,
    works: Sequence[Work],
    clock: Clock | None = None,
    probe: SlotProbe | None = None,
) -> dict[int, Any | Exception]:
    """Run all works through the slots, as many at a time as there are, and return `{index: result}`.

    A work that raises has its exception for a result; the others go on. Once one is `Preempted`, those that wait for a
    slot get none, and no result.

    Args:
      replicas: the compiled slots.
      base: the frozen weights, on their devices.
      works: the runs.
      clock: is told when updates are done.
      probe: measures all slots that are due at once; None lets every run measure by itself.
    """
    clock, results, waiting = clock or Clock(), {}, deque(range(len(works)))
    slots = _Slots(replicas, works[0].numbers if works else (), base)
    taken: dict[int, tuple[int, Any]] = {}  # slot -> the work's index and its generator
    batches: dict[int, Any] = {}  # slot -> the batch its run waits to be updated with
    measures: set[int] = set()  # the slots whose runs wait to be measured

    def go_on(slot: int, outcome: Any) -> None:
        """Let the run in a slot go on until it asks for something, or to its end."""
        index, steps = taken[slot]
        try:
            due = steps.send(outcome)
            while isinstance(due, Measure) and probe is None:
                due = steps.send(due.probe(slots.state(slot)))
            if isinstance(due, Measure):
                measures.add(slot)
            else:
                batches[slot] = due.batch
        except StopIteration as end:
            results[index] = end.value
        except Exception as error:  # one run's failure is not the others'
            if isinstance(error, Preempted):  # the others that have begun save too; the rest need not begin
                waiting.clear()
            # Of many processes, all must have failed here: otherwise they are no longer in step.
            results[index] = error if isinstance(error, Preempted) else hosts.common_outcome(error)
        if index in results:
            del taken[slot]

    with jax.transfer_guard("disallow"), ExitStack() as stack:
        stack.callback(lambda: [steps.close() for _, steps in taken.values()])
        while True:
            for slot in range(replicas.slots):
                while slot not in taken and waiting:
                    index = waiting.popleft()
                    taken[slot] = index, works[index].begin(slots.claim(slot, works[index]), clock)
                    go_on(slot, None)
            if measures and probe:
                measured, values = sorted(measures), slots.measure(probe, measures)
                measures.clear()
                for slot in measured:
                    go_on(slot, values(slot))
                continue  # runs may have ended, and their slots be free
            if not taken:
                return results
            metrics_S, updated = slots.update(batches), sorted(taken)
            batches.clear()
            clock.updates += 1
            fetch = functools.cache(functools.partial(jax.device_get, metrics_S))
            for slot in updated:
                go_on(slot, _Slice(fetch, slot, list(metrics_S)))


class _Slice(Mapping):
    """One slot's metrics, on the device until the first of them is asked for."""

    def __init__(self, fetch: Callable[[], Mapping[str, np.ndarray]], slot: int, names: list[str]) -> None:
        self._fetch, self._slot, self._names = fetch, slot, names

    def __getitem__(self, name: str) -> Any:
        return self._fetch()[name][self._slot]

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
