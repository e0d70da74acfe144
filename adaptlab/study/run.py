"""The members of a study, from their folders to their results: resumable at any moment, finished once."""

import functools
import json
import logging
import math
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaptlab import adapt, hosts, report, shard
from adaptlab.preempt import Preempted
from adaptlab.study.folder import StudyError, write_json
from adaptlab.study.halving import Halving, journal_value
from adaptlab.study.lab import Lab
from adaptlab.study.members import Member
from adaptlab.study.programs import Shared, plan, share
from adaptlab.study.reward import comparison, trained_parameters
from adaptlab.study.settings import Replication
from adaptlab.study.training_probes import probed
from adaptlab.train import Clock, Fitted, Run, Seat, Work, Writer, alone, course, fit_replicas, open_checkpoints

__all__ = ["Runner", "Task", "announce", "run_rounds", "run_tasks", "value"]

log = logging.getLogger(__name__)

_RESULT = "result.json"


class Task(NamedTuple):
    """A member and its place.

    Attributes:
      member: the run.
      home: its own folder.
      name: what it is called in W&B and on the terminal.
      group: what ties it to the others in W&B.
      wandb: the settings of the W&B mirror, see `Wandb`.
    """

    member: Member
    home: Path
    name: str
    group: str
    wandb: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether it has a result."""
        return (self.home / _RESULT).exists()

    @property
    def result(self) -> dict[str, Any] | None:
        """What it came to, if it has finished."""
        path = self.home / _RESULT
        return json.loads(path.read_text()) if path.exists() else None


def announce(lab: Lab, tasks: Sequence[Task]) -> None:
    """Say what has finished before, and how many programs the rest is, see `plan`."""
    for task in tasks:
        if task.finished:
            log.info("%s has finished before", task.name)
    plan(lab, [task.member for task in tasks if not task.finished])


def run_tasks(
    lab: Lab, tasks: Sequence[Task], folder: Path, replication: Replication, halving: Halving | None = None
) -> None:
    """Run what has not finished, each group of equal skeletons as one program.

    Args:
      lab: what they share.
      tasks: the runs.
      folder: where it is kept how they are run together, so that a resumed study runs them in the same way.
      replication: see `Replication`.
      halving: ends the worse runs early, see `Halving`.

    Raises:
      StudyError: runs failed, after all others were given their chance; names them and their errors.
      Preempted: the process was told to leave, and the states of all runs are saved.
    """
    announce(lab, tasks)
    run_rounds(lab, tasks, halving, Runner(lab, folder, replication))


class Runner:
    """Runs tasks of a lab in this process: each program is compiled once, for as many calls as there are.

    Args:
      lab: what the tasks share.
      folder: as for `run_tasks`, and so is `replication`.
      counts: how many runs each program has, by `Member.program`, where these tasks are a part of them: what is
        decided of a program depends on that. None counts those of the call that needs it first.
    """

    def __init__(
        self, lab: Lab, folder: Path, replication: Replication, counts: Mapping[str, int] | None = None
    ) -> None:
        self._lab, self._folder, self._replication, self._counts = lab, folder, replication, counts or {}
        self._programs: dict[str, Shared] = {}

    def __call__(self, tasks: Sequence[Task], until: int | None = None, final: bool = False) -> None:
        """Run unfinished tasks to a step: there they pause, or end if that is `final`; None runs to their end.

        Raises:
          StudyError: as for `run_tasks`, and so is `Preempted`.
        """
        groups: dict[str, list[Task]] = {}
        for task in tasks:
            if not task.finished:
                groups.setdefault(task.member.program, []).append(task)
        failures: dict[str, Exception] = {}
        for program, group in groups.items():
            if program not in self._programs:
                count = self._counts.get(program, len(group))
                self._programs[program] = share(self._lab, group[0].member, count, self._folder, self._replication)
            for task, outcome in _run_group(self._lab, group, self._programs[program], until, final):
                if isinstance(outcome, Preempted):
                    raise outcome
                if isinstance(outcome, Exception):
                    log.error("%s failed: %s", task.name, outcome, exc_info=outcome)
                    failures[task.name] = outcome
        if failures:
            listed = "\n".join(f"  {name}: {type(error).__name__}: {error}" for name, error in failures.items())
            raise StudyError(
                f"{len(failures)} of {len(tasks)} runs failed; the same command tries them again:\n{listed}"
            ) from next(iter(failures.values()))


def run_rounds(
    lab: Lab, tasks: Sequence[Task], halving: Halving | None, run: Callable[[Sequence[Task], int | None, bool], None]
) -> None:
    """Run tasks to their end, or by the rounds of a halving, in which the worse ones end early.

    Args:
      lab: what they share.
      tasks: the runs.
      halving: see `Halving`; None lets all go to the end.
      run: takes tasks to a step, see `Runner`.
    """
    running = list(tasks)
    metric = (halving.metric if halving else None) or f"held_out/{lab.target}/loss"
    rungs = halving.rungs(lab.total_steps, lab.training.measure_every) if halving else []
    compared = comparison(lab, halving.reward if halving and rungs else None, metric)
    for until in rungs:
        assert halving is not None
        # A run whose value at the rung is in its journal has been there: it waits in its checkpoint.
        run([t for t in running if journal_value(t.home, until, metric) is None], until, False)
        values = {i: compared(t.member, journal_value(t.home, until, metric)) for i, t in enumerate(running)}
        kept = halving.survivors(values)
        log.info("step %d: %d of %d runs go on", until, len(kept), len(running))
        run([t for i, t in enumerate(running) if i not in kept], until, True)
        running = [t for i, t in enumerate(running) if i in kept]
    run(running, None, False)


def _run_group(
    lab: Lab, tasks: Sequence[Task], shared: Shared, until: int | None, final: bool
) -> Iterable[tuple[Task, Any]]:
    """Run tasks of one program and return their outcomes; the exception of one that failed."""
    together = shared.replicas is not None

    def begin(task: Task, seat: Seat, clock: Clock) -> Generator[Any, Any, Any]:
        batches = (lab.batches if together else lab.placed_batches)(task.member.seed)
        return _attend(lab, task, shared, batches, seat, clock, until, final)

    if shared.replicas is None:
        return [(task, _alone(task, shared, functools.partial(begin, task))) for task in tasks]
    works = [Work(t.member.numbers, t.member.seed, functools.partial(begin, t)) for t in tasks]
    outcomes = fit_replicas(shared.replicas, shared.base, works, probe=shared.slot_probe)
    return [(task, outcomes[i]) for i, task in enumerate(tasks) if i in outcomes]


def _alone(task: Task, shared: Shared, begin: Callable[[Seat, Clock], Generator[Any, Any, Any]]) -> Any:
    outcome = None
    try:
        outcome = alone(begin, shared.program, shared.base, task.member.numbers, task.member.seed)
    except Preempted:
        raise
    except Exception as error:  # one run's failure is not the others'
        outcome = error
    failed = hosts.common_outcome(outcome if isinstance(outcome, Exception) else None)
    return outcome if failed is None else failed


def _attend(
    lab: Lab,
    task: Task,
    shared: Shared,
    batches: Callable[[int], Any],
    seat: Seat,
    clock: Clock,
    until: int | None,
    final: bool,
) -> Generator[Any, Any, dict[str, Any] | None]:
    """Take one member through its course, from its newest checkpoint if there is one, and return its result.

    Leaves in its folder: `journal.jsonl` (its curves), `delta.safetensors` (what it trained) and `result.json`; its
    checkpoints are removed once the result is on disk. A member that pauses keeps them, and has no result yet.
    """
    task.home.mkdir(parents=True, exist_ok=True)
    training, member = lab.training, task.member
    run = Run(
        program=shared.program,
        numbers=member.numbers,
        seed=member.seed,
        base=shared.base,
        batches=batches,
        probe=shared.probe,
        total_steps=lab.total_steps,
        measure_every=training.measure_every,
        save_every=training.save_every,
        until=until,
        moments=shared.moments,
        beginning=shared.beginning_probe,
    )
    saved = hosts.shared(task.home) / "checkpoints"
    checkpoints = open_checkpoints(saved, keep=training.keep)
    sinks: list[report.Sink] = []

    def open_writer(step: int) -> Writer:
        journal = task.home / "journal.jsonl"
        report.truncate_journal(journal, step)
        sinks.append(report.tee(report.journal(journal), *_mirrors(lab, task, shared)))
        return Writer(sinks[0].write, sinks[0].flush)

    try:
        fitted = yield from probed(
            shared.training_probes,
            run,
            seat,
            checkpoints,
            lambda checkpoints: course(run, seat, checkpoints, open_writer, clock),
        )
    finally:
        checkpoints.close()
        for sink in sinks:
            sink.close()
    if fitted.paused_at is not None and not final:
        return None
    result = _result(lab, task, shared, fitted, clock)
    write_json(task.home / _RESULT, result)
    hosts.barrier()  # the leader's result is on disk, and no process reads checkpoints any more
    if hosts.is_leader():
        shutil.rmtree(saved, ignore_errors=True)
    return result


def _mirrors(lab: Lab, task: Task, shared: Shared) -> list[report.Sink]:
    """What a member's curves go to besides its journal: the terminal and W&B."""
    member, wandb = task.member, task.wandb
    settings = {"method": member.method, "lr": member.lr, "seed": member.seed, "skeleton": member.skeleton}
    return [
        report.progress(task.name, lab.total_steps, lab.target, last_only=shared.replicas is not None),
        report.wandb_sink(
            wandb["project"],
            name=task.name,
            group=task.group,
            config=settings | {"numbers": member.numbers},
            dir=task.home,
            mode=wandb["mode"],
            tags=wandb["tags"],
        ),
    ]


def _result(lab: Lab, task: Task, shared: Shared, fitted: Fitted, clock: Clock) -> dict[str, Any]:
    member, tokens = task.member, lab.training.batch_size * lab.training.length
    digest = _save_delta(lab, task, fitted.delta)
    speed = shared.slots * tokens / float(np.median(clock.seconds[1:])) if clock.seconds[1:] else None
    return {
        "method": member.method,
        "lr": member.lr,
        "seed": member.seed,
        "numbers": member.numbers,
        "steps": lab.total_steps,
        "trainable_parameters": trained_parameters(lab, member),
        "flops": shared.flops * int(fitted.state.step),
        "flops_per_token": shared.flops / tokens,
        "tokens_per_second": speed,
        "peak_memory_bytes": shared.memory_bytes,
        "compile_seconds": shared.seconds,
        "first_step_seconds": clock.seconds[0] if clock.seconds else None,
        "slots": shared.slots,
        "how": shared.how,
        "resumed_at": fitted.resumed_at,
        "target_loss": None if fitted.diverged_at is not None else _last(task.home, f"held_out/{lab.target}/loss"),
        "diverged_at": fitted.diverged_at,
        "stopped_at": fitted.stopped_at,
        "pruned_at": fitted.paused_at,
        "delta_digest": digest,
    }


def _save_delta(lab: Lab, task: Task, delta: Any) -> str:
    """Write what was trained, once for all processes, and return its digest."""
    whole, path = shard.fetch(delta), task.home / "delta.safetensors"
    digest = hosts.agreed(
        lambda: adapt.save_delta(path, whole, adapt=task.member.adapt, base=lab.pretrained.fingerprint)
    )
    if not hosts.is_leader():
        path.unlink(missing_ok=True)
        path.symlink_to(hosts.shared(path))
    return digest


def _last(home: Path, metric: str) -> float | None:
    values = [row.metrics[metric] for row in report.read_journal(home / "journal.jsonl") if metric in row.metrics]
    return values[-1] if values else None


def value(results: Mapping[str, Mapping[str, Any]]) -> float:
    """Return what a sweeper should make small: the mean of all runs' last target loss; infinite if one diverged."""
    losses = [result["target_loss"] for result in results.values()]
    return math.inf if None in losses else float(np.mean(losses))
