"""Which members share a program, how many run in it at a time, and how: said before anything starts."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from adaptlab import config, tree
from adaptlab.measure import make_probe, make_slot_probe
from adaptlab.optim.group_table import group_table
from adaptlab.study.bases import open_moments
from adaptlab.study.folder import write_json
from adaptlab.study.lab import Lab
from adaptlab.study.members import Member, method_program
from adaptlab.study.settings import Replication
from adaptlab.train import (
    How,
    Program,
    Replicas,
    SlotProbe,
    compile_program,
    compile_replicas,
    device_numbers,
    over_slots,
    reading,
)

__all__ = ["Shared", "plan", "share"]

log = logging.getLogger(__name__)

_CHOICES = "programs.json"
_TRIAL_SLOTS, _TRIAL_STEPS = (4, 16), 2
_GIB = 2.0**30
_NEAR = 1.05  # times the fastest is as fast
_ROOM = 0.8  # of the memory that is free, what a program may take


class Shared(NamedTuple):
    """A program, compiled, and what its members have in common.

    Attributes:
      program: the functions of one run; its step is compiled if it runs alone.
      base: the weights it takes: the lab's, prepared for its adaptation.
      replicas: the slots it runs in, or None: its members run one after the other.
      probe: `(numbers, base, delta) -> metrics`.
      slot_probe: measures all slots at once, or None.
      moments: what it takes over of the base's own training, or None.
      flops: of one run's step.
      memory_bytes: what a step needs at its peak on one device, all slots together.
      seconds: how long compiling took.
    """

    program: Program
    base: Any
    replicas: Replicas | None
    probe: Callable[..., dict[str, float]]
    slot_probe: SlotProbe | None
    moments: Any
    flops: int
    memory_bytes: int
    seconds: float

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
    skeletons = {member.program: member.skeleton for member in members}
    text = f"{len(members)} runs are {len(skeletons)} program{'s' if len(skeletons) > 1 else ''}"
    log.info("%s%s", text, _split_by(list(skeletons.values())))
    for skeleton in skeletons:
        group = [member for member in members if member.program == skeleton]
        vary = sorted(k for k in group[0].numbers if len({m.numbers[k] for m in group}) > 1)
        vary += ["seed"] if len({m.seed for m in group}) > 1 else []
        methods = ", ".join(dict.fromkeys(m.method for m in group))
        log.info("  %s: %d runs%s", methods, len(group), f" that differ in {', '.join(vary)}" if vary else "")


def _split_by(skeletons: list[Mapping[str, Any]]) -> str:
    flat = [tree.flatten(skeleton, lambda x: not isinstance(x, Mapping)) for skeleton in skeletons]
    keys = dict.fromkeys(key for one in flat for key in one)
    split = [key.replace("/", ".") for key in keys if len({json.dumps(one.get(key)) for one in flat}) > 1]
    return f", split by {', '.join(split)}" if split else ""


def share(lab: Lab, members: Sequence[Member], folder: Path, replication: Replication) -> Shared:
    """Compile what members of one skeleton share.

    How they run together is kept in `folder/programs.json`: a study that is resumed repeats its decision, so that its
    bits stay the same however many members are left.

    Args:
      lab: the study's.
      members: those that have not finished.
      folder: where the decision is kept.
      replication: see `Replication`.
    """
    program = method_program(
        members[0],
        lab.pretrained.model,
        lab.total_steps,
        target=lab.target,
        accumulate=lab.training.accumulate,
        placement=lab.placement,
    )
    moments = (
        open_moments(lab.base, lab.pretrained.fingerprint, lab.placement) if members[0].skeleton["carry"] else None
    )
    scalars = device_numbers(members[0].numbers, members[0].seed, lab.params)
    base = program.prepare(scalars[0], lab.params)
    _log_groups(lab, program, base, members[0], moments)
    domains = {f"held_out/{name}": batches for name, batches in lab.held_out.items()}
    probe = make_probe(lab.measurement, domains, program.bind)
    bench = _Bench(lab, program, base, members[0], moments)
    slots, how = _decide(bench, len(members), folder, replication)
    if how == "alone":
        compiled = compile_program(program, *scalars, base, lab.put(bench.batch), moments)
        log.info("%s: compiled in %.1f s", members[0].method, compiled.seconds)
        return Shared(
            compiled.program, base, None, probe, None, moments, compiled.flops, compiled.memory_bytes, compiled.seconds
        )
    replicas = bench.replicas(slots, how)
    log.info(
        "%s: %d at a time by %s, %.2f GiB, compiled in %.1f s",
        *(members[0].method, slots, how, replicas.memory_bytes / _GIB, replicas.seconds),
    )

    def bind(numbers: Any, base: Any, state: Any) -> Any:
        return program.bind(numbers, base, reading(state))

    slot_probe = make_slot_probe(
        lab.measurement, domains, bind, lambda one: over_slots(one, replicas.how, lab.placement)
    )
    return Shared(
        *(program, base, replicas, probe, slot_probe, moments),
        *(bench.flops(), replicas.memory_bytes, replicas.seconds),
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


class _Bench:
    """Compiles and times slots of a program."""

    def __init__(self, lab: Lab, program: Program, base: Any, member: Member, moments: Any) -> None:
        self.lab, self.program, self.base, self.member, self.moments = lab, program, base, member, moments
        self.batch = lab.batches(member.seed)(0)
        self.replica = lab.placement.mesh.shape["replica"]
        self._compiled: dict[tuple[int, How], Replicas] = {}

    def replicas(self, slots: int, how: How) -> Replicas:
        if (slots, how) not in self._compiled:
            self._compiled[slots, how] = compile_replicas(
                self.program,
                self.member.numbers,
                self.base,
                self.batch,
                slots,
                how,
                placement=self.lab.placement,
                moments=self.moments,
            )
        return self._compiled[slots, how]

    def flops(self) -> int:
        from adaptlab.flops import count_flops

        scalars = device_numbers(self.member.numbers, 0, self.base)
        state = jax.eval_shape(self.program.init, *scalars, self.base, self.moments)
        return count_flops(self.program.step, *scalars, state, self.base, self.batch)

    def seconds(self, replicas: Replicas) -> float:
        """The time of one run's update among others, the fastest of a few."""
        n, scalars = replicas.slots, device_numbers(self.member.numbers, self.member.seed, self.base)
        state, states = self.program.init(*scalars, self.base, self.moments), replicas.empty()
        for slot in range(n):
            states = replicas.put(states, np.int32(slot), state)
        many = jax.tree.map(lambda x: np.stack([np.asarray(x)] * n), (*scalars, np.bool_(True), self.batch))
        numbers, seeds, active, batches = replicas.spread(many)
        times = []
        for _ in range(_TRIAL_STEPS + 1):
            begun = time.perf_counter()
            states, metrics = replicas.step(numbers, seeds, states, active, self.base, batches)
            jax.block_until_ready((states, metrics))
            times.append(time.perf_counter() - begun)
        return min(times[1:]) / n


def _decide(bench: _Bench, count: int, folder: Path, replication: Replication) -> tuple[int, Any]:
    """Return how many slots, and how they are run: from the folder if it was decided before."""
    path = folder / _CHOICES
    known = json.loads(path.read_text()) if path.exists() else {}
    key = hashlib.sha256(bench.member.program.encode()).hexdigest()[:16]
    if key in known:
        return known[key]["slots"], known[key]["how"]
    if count == 1 or replication.how == "alone":
        slots, how = 1, "alone"
    elif replication.how == "auto":
        how, slots = _fastest(bench, replication.slots or count, replication)
    else:
        how, slots = replication.how, _fit(bench, replication.slots or count, replication.how, replication)
    write_json(path, known | {key: {"slots": slots, "how": how, "method": bench.member.method}})
    return slots, how


def _fastest(bench: _Bench, wanted: int, replication: Replication) -> tuple[How, int]:
    """Measure which is faster, batching or taking turns, and whether more slots help.

    On an accelerator small runs fill the chip together; on a CPU more of them at a time may only fill its caches.
    """
    ways: tuple[How, ...] = ("vmap", "map")
    most = {how: _fit(bench, wanted, how, replication) for how in ways}
    trials: list[tuple[How, int]] = [
        (how, n) for how in ways for n in sorted({min(most[how], n * bench.replica) for n in _TRIAL_SLOTS})
    ]
    seconds = {trial: bench.seconds(bench.replicas(trial[1], trial[0])) for trial in trials}
    near = [trial for trial in trials if seconds[trial] <= _NEAR * min(seconds.values())]
    how, slots = max(near, key=lambda trial: (trial[1], -seconds[trial]))
    told = ", ".join(f"{t:.3f} s among {n} by {h}" for (h, n), t in seconds.items())
    log.info("%s: an update takes %s: %s", bench.member.method, told, how)
    # The fastest that was tried; if that was the largest of its kind, as many as there are.
    return how, most[how] if slots == max(n for h, n in trials if h == how) else slots


def _fit(bench: _Bench, wanted: int, how: How, replication: Replication) -> int:
    """Return how many slots fit into memory, by the compiler's own account of a few."""
    wanted = _rounded(wanted, bench.replica)
    limit = replication.memory_gib * _GIB if replication.memory_gib else _ROOM * _free_bytes()
    few = min(wanted, _TRIAL_SLOTS[0] * bench.replica)
    base = max(tree.nbytes(bench.base), 1)
    each = max(1.0, (bench.replicas(few, how).memory_bytes - base) / (few / bench.replica))
    most = int((limit - base) / each) * bench.replica
    if most < bench.replica:
        raise ValueError(
            f"{bench.member.method}: one run needs {(base + each) / _GIB:.1f} GiB of {limit / _GIB:.1f} GiB; "
            f"use a smaller batch, a smaller base, or a device with more memory."
        )
    return min(wanted, most)


def _rounded(slots: int, replica: int) -> int:
    return -(-slots // replica) * replica


def _free_bytes() -> float:
    """The memory a device has, or what this machine has to spare if that is where arrays live."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if limit := stats.get("bytes_limit"):
        return float(limit)
    available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(available.split()[1]) * 1024 / jax.local_device_count()
