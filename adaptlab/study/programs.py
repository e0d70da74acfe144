"""Which members share a program, said before anything starts, and what they share, compiled."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from adaptlab import config, tree
from adaptlab.adapt import prepared
from adaptlab.optim.group_table import group_table
from adaptlab.study.lab import Lab, pipeline_of
from adaptlab.study.members import Member, method_program
from adaptlab.study.moments import open_moments
from adaptlab.study.probes import beginning_probe, run_probe, slots_probe
from adaptlab.study.settings import Replication
from adaptlab.study.training_probes import TrainingProbes, training_probes
from adaptlab.study.trials import Bench, decide
from adaptlab.train import (
    Program,
    Replicas,
    SlotProbe,
    compile_program,
    device_numbers,
)

__all__ = ["Shared", "plan", "share"]

log = logging.getLogger(__name__)

_GIB = 2.0**30


class Shared(NamedTuple):
    """A program, compiled, and what its members have in common.

    Attributes:
      program: the functions of one run; its step is compiled if it runs alone.
      base: the weights it takes: the lab's, prepared for its adaptation.
      replicas: the slots it runs in, or None: its members run one after the other.
      probe: `(numbers, base, delta) -> metrics`.
      beginning_probe: the same of how runs begin.
      slot_probe: measures all slots at once, or None.
      moments: what it takes over of the base's own training, or None.
      flops: of one run's step.
      memory_bytes: what a step needs at its peak on one device, all slots together.
      seconds: how long compiling took.
      training_probes: what else its members measure, see `training_probes`.
    """

    program: Program
    base: Any
    replicas: Replicas | None
    probe: Callable[..., dict[str, float]]
    beginning_probe: Callable[..., dict[str, float]]
    slot_probe: SlotProbe | None
    moments: Any
    flops: int
    memory_bytes: int
    seconds: float
    training_probes: TrainingProbes | None = None

    @property
    def slots(self) -> int:
        """How many runs step at a time."""
        return self.replicas.slots if self.replicas else 1

    @property
    def how(self) -> str:
        """How they do."""
        return self.replicas.how if self.replicas else "alone"


def plan(lab: Lab, members: Sequence[Member]) -> None:
    """Log how many runs are how many programs, and which keys split them.

    Raises:
      ConfigError: a program that cannot be made for this base.
    """
    if not members:
        return
    for member in members:
        if member.skeleton["carry"] and lab.base.get("optimizer") is None:
            open_moments(lab.base)  # says what to do
    if lab.base.get("quantize"):
        _refuse_untrainable(lab, {member.program: member for member in members}.values())
    skeletons = {member.program: member.skeleton for member in members}
    text = f"{len(members)} runs are {len(skeletons)} program{'s' if len(skeletons) > 1 else ''}"
    log.info("%s%s", text, _split_by(list(skeletons.values())))
    for skeleton in skeletons:
        group = [member for member in members if member.program == skeleton]
        vary = sorted(k for k in group[0].numbers if len({m.numbers[k] for m in group}) > 1)
        vary += ["seed"] if len({m.seed for m in group}) > 1 else []
        methods = ", ".join(dict.fromkeys(m.method for m in group))
        log.info("  %s: %d runs%s", methods, len(group), f" that differ in {', '.join(vary)}" if vary else "")


def _refuse_untrainable(lab: Lab, members: Iterable[Member]) -> None:
    """Raise for methods that would train weights of few bits, before the first of all has begun."""
    model = lab.pretrained.model
    for member in members:
        adaptation = config.instantiate(member.adapt, fresh=model.init, slots=model.slots())
        try:
            jax.eval_shape(lambda base, a=adaptation: a.init(jax.random.key(0), prepared(a, base)), lab.params)
        except ValueError as error:
            raise config.ConfigError(
                f"methods.{member.method} does not go with base.quantize={lab.base['quantize']!r}: {error}"
            ) from error


def _split_by(skeletons: list[Mapping[str, Any]]) -> str:
    flat = [tree.flatten(skeleton, lambda x: not isinstance(x, Mapping)) for skeleton in skeletons]
    keys = dict.fromkeys(key for one in flat for key in one)
    split = [key.replace("/", ".") for key in keys if len({json.dumps(one.get(key)) for one in flat}) > 1]
    return f", split by {', '.join(split)}" if split else ""


def training_program(lab: Lab, member: Member) -> Program:
    """Return the program that a member trains by, as the lab's settings say."""
    return method_program(
        member,
        lab.pretrained.model,
        lab.total_steps,
        target=lab.target,
        accumulate=lab.training.accumulate,
        pipeline=pipeline_of(lab.training),
        placement=lab.placement,
    )


def share(lab: Lab, member: Member, count: int, folder: Path, replication: Replication) -> Shared:
    """Compile what members of one skeleton share.

    Args:
      lab: the study's.
      member: any of them.
      count: how many they are.
      folder: where it is kept how they run together.
      replication: see `Replication`.
    """
    program = training_program(lab, member)
    moments = open_moments(lab.base, lab.pretrained.fingerprint, lab.placement) if member.skeleton["carry"] else None
    scalars = device_numbers(member.numbers, member.seed, lab.params)
    base = program.prepare(scalars[0], lab.params)
    _log_groups(lab, program, base, member, moments)
    probe, more = run_probe(lab, program, base), training_probes(lab, program, base)
    beginning = beginning_probe(probe, program.bind)
    bench = Bench(lab, program, base, member, moments)
    slots, how = decide(bench, count, folder, replication)
    if how == "alone":
        compiled = compile_program(program, *scalars, base, lab.put(bench.batch), moments)
        log.info("%s: compiled in %.1f s", member.method, compiled.seconds)
        return Shared(
            *(compiled.program, base, None, probe, beginning, None, moments),
            *(compiled.flops, compiled.memory_bytes, compiled.seconds, more),
        )
    replicas = bench.replicas(slots, how)
    log.info(
        "%s: %d at a time by %s, %.2f GiB, compiled in %.1f s",
        *(member.method, slots, how, replicas.memory_bytes / _GIB, replicas.seconds),
    )
    return Shared(
        *(program, base, replicas, probe, beginning, slots_probe(lab, program, base, replicas.how), moments),
        *(bench.flops(), replicas.memory_bytes, replicas.seconds, more),
    )


def _log_groups(lab: Lab, program: Program, base: Any, member: Member, moments: Any) -> None:
    """Log what the parameter groups of a member come to; a grouping in which nothing trains is an error here."""
    if not member.skeleton["optim"].get("groups"):
        return
    groups = config.instantiate(config.fill(member.skeleton["optim"]["groups"], member.numbers, "optim.groups"))
    shapes = jax.eval_shape(program.init, *device_numbers(member.numbers, 0, base), base, moments).delta
    for row in group_table(groups, shapes, lab.total_steps):
        start = "never trains" if row.start is None else f"from update {row.start}"
        log.info(
            "%s: %s, layers %s: %d parameters, rate x %.3g, decay x %.3g, %s",
            *(member.method, ", ".join(row.paths), row.layers, row.parameters, row.rate, row.decay, start),
        )
