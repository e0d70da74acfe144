"""The training loop: effects and their timing, no arithmetic.

The order, for each step s from where the run stands up to its total T:

1. every `measure_every` steps, and at T: measure the state before update s;
2. every `save_every` steps before T: save that state; if the process has been told to leave, save it now (without
   measuring it first) and leave;
3. at T, or if early stopping has seen enough, stop; otherwise draw batch s;
4. dispatch update s;
5. write the metrics of update s-1, which are done by now: the device never waits for the host.

A checkpoint at s is therefore the state in which the curves hold all rows of steps before s, and resuming at s drops
later rows and goes on with 1.

The order stands in `course`, a generator that asks for an update or a measurement wherever one is due, and neither
knows nor cares whether it gets them alone (`fit`) or with others (`adaptlab.train.replicas`).
"""

import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from adaptlab.preempt import Preempted, noticed
from adaptlab.train.checkpoint import Checkpoints
from adaptlab.train.program import Numbers, Program, device_numbers, scalar_put
from adaptlab.train.step import TrainState, reading

__all__ = ["Clock", "Course", "Fitted", "Measure", "Run", "Seat", "Update", "Writer", "alone", "course", "fit"]

Metrics = dict[str, Any]


class Writer(NamedTuple):
    """Where the curves go: `write(step, {metric: value})`, and `flush()`, after which a crash loses none of them."""

    write: Callable[[int, dict[str, float]], None]
    flush: Callable[[], None]


class Seat(NamedTuple):
    """Where a run's state is between its updates: `get()` it, `put(state)` another."""

    get: Callable[[], TrainState]
    put: Callable[[TrainState], None]


class Update(NamedTuple):
    """A course asks for an update with this batch; it is sent its metrics, which may still be on their way."""

    batch: Any


class Measure(NamedTuple):
    """A course asks for a measurement of its state; it is sent `{metric: value}`, such as `probe(state)` gives."""

    probe: Callable[[TrainState], Metrics]


class Run(NamedTuple):
    """All that determines a run's curves.

    Attributes:
      program: the compiled way of adapting.
      numbers: its traced numbers.
      seed: the run's seed.
      base: the frozen weights, on their devices.
      batches: `step -> batch`, on its devices.
      probe: `(numbers, base, delta) -> {metric: value}`.
      total_steps: T, the number of updates.
      measure_every: steps between probes.
      save_every: steps between checkpoints.
      until: pause there, measured and saved, to be continued by a later run of the same; None runs to the end.
      moments: what the program's `carry` takes over, or None.
      beginning: the probe of the state before the first update; None takes `probe`.
    """

    program: Program
    numbers: Numbers
    seed: int
    base: Any
    batches: Callable[[int], Any]
    probe: Callable[[Numbers, Any, Any], dict[str, float]]
    total_steps: int
    measure_every: int
    save_every: int
    until: int | None = None
    moments: Any = None
    beginning: Callable[[Numbers, Any, Any], dict[str, float]] | None = None


class Fitted(NamedTuple):
    """How a run ended.

    Attributes:
      state: the last state.
      resumed_at: the step of the checkpoint it started from, or None.
      diverged_at: the step whose loss or gradient was not finite, or None.
      stopped_at: the step at which early stopping ended it, or None.
      paused_at: the step at which it waits to be continued, or None.
    """

    state: TrainState
    resumed_at: int | None = None
    diverged_at: int | None = None
    stopped_at: int | None = None
    paused_at: int | None = None

    @property
    def delta(self) -> Any:
        """What was trained: with early stopping, where the watched metric was best."""
        return self.state.watch.best_delta if self.state.watch else reading(self.state)


Course = Generator[Update | Measure, Metrics, Fitted]
"""Yields what is due next; is sent its outcome."""


class Clock:
    """Wall time per update: from one settled update to the next, with pauses (probes, saves) cut out by `restart`.

    Runs that step together share one, and their common update counts once.

    Attributes:
      seconds: of each update.
      updates: how many have been dispatched.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.updates = self._settled = 0
        self.restart()

    def restart(self) -> None:
        self._last = time.perf_counter()

    def tick(self, update: int) -> None:
        """The update that was dispatched as number `update` is done."""
        now = time.perf_counter()
        if update > self._settled:
            self.seconds.append(now - self._last)
            self._settled = update
        self._last = now


def fit(run: Run, checkpoints: Checkpoints, open_writer: Callable[[int], Writer], clock: Clock | None = None) -> Fitted:
    """Train from the newest checkpoint, or from the start, to the end.

    Args:
      run: what to train.
      checkpoints: where its states are saved.
      open_writer: `step -> Writer`, called once with the step the run stands at: rows from there on will be written
        again.
      clock: is told when updates are done.
    """
    return alone(
        lambda seat, clock: course(run, seat, checkpoints, open_writer, clock),
        run.program,
        run.base,
        run.numbers,
        run.seed,
        clock,
    )


def alone(
    begin: Callable[[Seat, Clock], Generator[Update | Measure, Metrics, Any]],
    program: Program,
    base: Any,
    numbers: Mapping[str, float],
    seed: int,
    clock: Clock | None = None,
) -> Any:
    """Give a course its updates by a program of its own, and its measurements, and return what it returns."""
    held: list[Any] = [None]
    clock, scalars = clock or Clock(), device_numbers(numbers, seed, base)
    steps = begin(Seat(lambda: held[0], lambda state: held.__setitem__(0, state)), clock)
    outcome = None
    with jax.transfer_guard("disallow"):
        while True:
            try:
                due = steps.send(outcome)  # pyright: ignore[reportArgumentType] (the first one is None)
            except StopIteration as end:
                return end.value
            if isinstance(due, Measure):
                outcome = due.probe(held[0])
                continue
            held[0], outcome = program.step(*scalars, held[0], base, due.batch)
            clock.updates += 1


def course(
    run: Run, seat: Seat, checkpoints: Checkpoints, open_writer: Callable[[int], Writer], clock: Clock
) -> Course:
    """Return the course of a run, in the order above; see `fit`.

    Raises:
      Preempted: the process was told to leave, and the state is saved (`adaptlab.preempt`).
    """
    numbers, seed = device_numbers(run.numbers, run.seed, run.base)
    state = run.program.init(numbers, seed, run.base, run.moments)
    if checkpoints.found():
        # Only its shapes from here on: what is restored needs its memory.
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    restored = checkpoints.restore(state)
    seat.put(state if restored is None else restored)
    start = 0 if restored is None else int(jax.device_get(restored.step))
    del state, restored
    writer = open_writer(start)
    fitted = yield from _steps(run, seat, start, checkpoints, writer, numbers, clock)
    writer.flush()
    return fitted._replace(resumed_at=start or None)


def _steps(
    run: Run, seat: Seat, start: int, checkpoints: Checkpoints, writer: Writer, numbers: Numbers, clock: Clock
) -> Course:
    pending: tuple[int, int, Metrics] | None = None  # the step, the update's number on the clock, its metrics
    end = run.total_steps if run.until is None else min(run.until, run.total_steps)

    def settle() -> bool:
        """Write the metrics of the last update, and return whether they are finite: otherwise the run ends there."""
        nonlocal pending
        if pending is None:
            return True
        step, update, metrics = pending
        metrics = {k: float(v) for k, v in jax.device_get(dict(metrics)).items()}
        clock.tick(update)
        writer.write(step, {f"train/{name}": value for name, value in metrics.items()})
        pending = None
        return bool(np.isfinite([metrics["loss"], metrics["grad_norm"]]).all())

    for step in range(start, end + 1):
        pausing, leaving = step == end < run.total_steps, step < end and noticed()
        measuring = (step == end or step % run.measure_every == 0) and not leaving
        saving = start < step and (pausing or leaving or (step < end and step % run.save_every == 0))
        if measuring or saving:
            if not settle():
                return Fitted(seat.get(), diverged_at=step - 1)
            measured: Metrics = {}
            if measuring:
                probe = run.probe if step else run.beginning or run.probe
                measured = yield Measure(lambda state, probe=probe: probe(numbers, run.base, reading(state)))
                writer.write(step, measured)
            if saving:
                writer.flush()
                checkpoints.save(seat.get())
            # After saving: a resumed run measures this step again, and early stopping must not count it twice.
            stopped = measuring and _observe(run, seat, measured, numbers)
            clock.restart()
            if stopped:
                return Fitted(seat.get(), stopped_at=step)
        if leaving:
            raise Preempted(f"told to leave at step {step}")
        if step == end:
            return Fitted(seat.get(), paused_at=step if pausing else None)
        metrics = yield Update(run.batches(step))
        if not settle():
            return Fitted(seat.get(), diverged_at=step - 1)
        pending = step, clock.updates, metrics
    raise AssertionError("unreachable: the last step returns")


def _observe(run: Run, seat: Seat, measured: dict[str, float], numbers: Numbers) -> bool:
    """Tell early stopping what was measured; whether that ends the run."""
    if run.program.observe is None:
        return False
    if run.program.watched not in measured:
        raise KeyError(f"Early stopping watches {run.program.watched!r}; measured are {sorted(measured)}.")
    value = scalar_put(run.base)(np.float32(measured[run.program.watched]))
    seat.put(run.program.observe(numbers, seat.get(), value))
    return bool(jax.device_get(seat.get().watch.stopped))
