"""The training loop: effects and their timing, no arithmetic.

The order, for each step s from where the run stands up to its total T:

1. every `measure_every` steps, and at T: measure the state before update s;
2. every `save_every` steps, and at T: save that state;
3. at T, stop; otherwise draw batch s;
4. dispatch update s;
5. write the metrics of update s-1, which are done by now: the device never waits for the host.

A checkpoint at s is therefore the state in which the curves hold all rows of steps before s, and resuming at s drops
later rows and goes on with 1.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from adaptlab.train.checkpoint import Checkpoints
from adaptlab.train.program import Numbers, Program, device_numbers
from adaptlab.train.step import TrainState

__all__ = ["Fitted", "Run", "Writer", "fit"]


class Writer(NamedTuple):
    """Where the curves go: `write(step, {metric: value})`, and `flush()`, after which a crash loses none of them."""

    write: Callable[[int, dict[str, float]], None]
    flush: Callable[[], None]


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


class Fitted(NamedTuple):
    """How a run ended.

    Attributes:
      state: the last state.
      resumed_at: the step of the checkpoint it started from, or None.
      diverged_at: the step whose loss or gradient was not finite, or None.
      step_seconds: wall time per update, the first of this process (with its compilation) left out.
      first_step_seconds: the first update of this process.
    """

    state: TrainState
    resumed_at: int | None
    diverged_at: int | None
    step_seconds: list[float]
    first_step_seconds: float


def fit(run: Run, checkpoints: Checkpoints, open_writer: Callable[[int], Writer]) -> Fitted:
    """Train from the newest checkpoint, or from the start, to the end.

    Args:
      run: what to train.
      checkpoints: where its states are saved.
      open_writer: `step -> Writer`, called once with the step the run stands at: rows from there on will be written
        again.
    """
    numbers, seed = device_numbers(run.numbers, run.seed)
    with jax.transfer_guard("disallow"):
        state = run.program.init(numbers, seed, run.base)
        restored = checkpoints.restore(state)
        start = 0 if restored is None else _step(restored)
        state = state if restored is None else restored
        fitted = _loop(run, numbers, seed, state, start, checkpoints, open_writer(start))
    return fitted._replace(resumed_at=None if restored is None else start)


def _loop(
    run: Run,
    numbers: Numbers,
    seed: jax.Array,
    state: TrainState,
    start: int,
    checkpoints: Checkpoints,
    writer: Writer,
) -> Fitted:
    clock, pending, diverged_at = _Clock(), None, None

    def settle() -> None:
        """Write the metrics of the last update; the first that is not finite ends the run."""
        nonlocal pending, diverged_at
        if pending is None:
            return
        step, metrics = pending[0], {k: float(v) for k, v in jax.device_get(pending[1]).items()}
        clock.tick()
        writer.write(step, {f"train/{name}": value for name, value in metrics.items()})
        if diverged_at is None and not all(np.isfinite([metrics["loss"], metrics["grad_norm"]])):
            diverged_at = step
        pending = None

    for step in range(start, run.total_steps + 1):
        last = step == run.total_steps
        measuring = last or step % run.measure_every == 0
        saving = last or (step % run.save_every == 0 and step > start)
        if measuring or saving:
            settle()
            if diverged_at is not None:
                break
            if measuring:
                writer.write(step, run.probe(numbers, run.base, state.delta))
            if saving:
                writer.flush()
                checkpoints.save(state)
            clock.restart()
        if last:
            break
        batch = run.batches(step)
        state, metrics = run.program.step(numbers, seed, state, run.base, batch)
        settle()
        if diverged_at is not None:
            break
        pending = (step, metrics)
    writer.flush()
    return Fitted(state, None, diverged_at, clock.seconds[1:], clock.seconds[0] if clock.seconds else float("nan"))


def _step(state: TrainState) -> int:
    return int(jax.device_get(state.step))


class _Clock:
    """Wall time per update: from tick to tick, with pauses (probes, saves) cut out by `restart`."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.restart()

    def restart(self) -> None:
        self._last = time.perf_counter()

    def tick(self) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now
