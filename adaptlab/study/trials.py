"""How many runs of a program step together, and how: measured once, and kept."""

import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from adaptlab import hosts, runtime, tree
from adaptlab.flops import count_flops
from adaptlab.source import cache_dir
from adaptlab.study.devices import cores
from adaptlab.study.folder import turn, write_json
from adaptlab.study.lab import Lab
from adaptlab.study.members import Member
from adaptlab.study.settings import Replication
from adaptlab.train import How, Program, Replicas, compile_program, compile_replicas, device_numbers

__all__ = ["Bench", "decide"]

log = logging.getLogger(__name__)

Way = How | Literal["alone"]
"""How runs of a program step: in slots, or each by itself."""

_FEW, _TRIAL_STEPS = 4, 2  # slots per device, and updates
_CLEARLY = 0.95  # of a time is less
_ROOM = 0.8  # of the memory that is free, what a program may take
_GIB = 2.0**30


class Bench:
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
        for _ in range(1 + _TRIAL_STEPS):
            begun = time.perf_counter()
            states, metrics = replicas.step(numbers, seeds, states, active, self.base, batches)
            jax.block_until_ready((states, metrics))
            times.append(time.perf_counter() - begun)
        return min(times[1:]) / n

    def seconds_alone(self) -> float:
        """The time of an update of one run by itself, the fastest of a few."""
        scalars = device_numbers(self.member.numbers, self.member.seed, self.base)
        batch = self.lab.put(self.batch)
        step = compile_program(self.program, *scalars, self.base, batch, self.moments).program.step
        state, times = self.program.init(*scalars, self.base, self.moments), []
        for _ in range(1 + _TRIAL_STEPS):
            begun = time.perf_counter()
            state, metrics = step(*scalars, state, self.base, batch)
            jax.block_until_ready((state, metrics))
            times.append(time.perf_counter() - begun)
        return min(times[1:])

    def identity(self, count: int, replication: Replication) -> str:
        """What a decision depends on: program, base, shapes, and what the machine can do."""
        device = jax.devices()[0]
        shapes = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(self.batch)]
        parts = [self.member.program, self.lab.pretrained.fingerprint, shapes, self.replica, count, replication]
        machine = [jax.__version__, device.platform, device.device_kind, jax.device_count(), len(cores())]
        return hashlib.sha256(json.dumps([*parts, *machine]).encode()).hexdigest()


def decide(bench: Bench, count: int, folder: Path, replication: Replication) -> tuple[int, Any]:
    """Return how many slots there are, and how they are run ("vmap", "map" or "alone").

    Other slots round differently. So that a study which is resumed keeps its bits, however many of its runs are left,
    a decision is kept in `folder/programs.json`; so that the same study keeps them when it is repeated, what was
    measured is kept in the cache of this machine, too.

    Args:
      bench: compiles and times slots.
      count: how many runs there are.
      folder: the study's, or the sweep's.
      replication: see `Replication`.
    """
    with turn(folder / "programs.lock"):  # processes of one sweep decide once
        return _decided(bench, count, folder / "programs.json", replication)


def _decided(bench: Bench, count: int, path: Path, replication: Replication) -> tuple[int, Any]:
    known = json.loads(path.read_text()) if path.exists() else {}
    key = hashlib.sha256(bench.member.program.encode()).hexdigest()[:16]
    if key in known:
        return known[key]["slots"], known[key]["how"]
    if count == 1 or replication.how == "alone":
        slots, how = 1, "alone"
    elif replication.how == "auto":
        slots, how = _measured(bench, count, replication)
    else:
        slots, how = _fit(bench, replication.slots or count, replication.how, replication), replication.how
    write_json(path, known | {key: {"slots": slots, "how": how, "method": bench.member.method}})
    return slots, how


def _measured(bench: Bench, count: int, replication: Replication) -> tuple[int, Way]:
    """Return what was, or is now, measured to be fastest."""
    path = cache_dir() / "programs" / f"{bench.identity(count, replication)}.json"
    if kept := hosts.agreed(lambda: json.loads(path.read_text()) if path.exists() else None):
        log.info("%s: %s, as measured before (%s)", bench.member.method, kept["how"], path)
        return kept["slots"], kept["how"]
    slots, how, seconds = _fastest(bench, replication.slots or count, replication)
    told = ", ".join(f"{t:.3f} s {among}" for among, t in seconds.items())
    log.info("%s: an update takes %s: %s", bench.member.method, told, how)
    if hosts.is_leader():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"slots": slots, "how": how, "seconds": seconds})
    return slots, how


def _fastest(bench: Bench, wanted: int, replication: Replication) -> tuple[int, Way, dict[str, float]]:
    """Measure which is faster, batching or taking turns, and whether batching more of them helps.

    On an accelerator small runs fill the chip together; on a CPU more of them at a time may only fill its caches.
    Among slots that take turns, more are no faster; on one device they need no slots.

    Returns:
      Slots, how, and what an update took by `"among <slots> by <how>"` or `"alone"`.
    """
    seconds: dict[str, float] = {}

    def timed(slots: int, how: Way) -> float:
        among = "alone" if how == "alone" else f"among {slots} by {how}"
        if among not in seconds:
            mine = bench.seconds_alone() if how == "alone" else bench.seconds(bench.replicas(slots, how))
            seconds[among] = hosts.agreed(lambda: mine)
        return seconds[among]

    turns: Way = "alone" if bench.replica == 1 and replication.slots is None else "map"
    most = {"vmap": _fit(bench, wanted, "vmap", replication)}
    most[turns] = 1 if turns == "alone" else _fit(bench, wanted, turns, replication)
    few = {how: min(most[how], _FEW * bench.replica) for how in most}
    if timed(few[turns], turns) < _CLEARLY * timed(few["vmap"], "vmap"):
        return few[turns], turns, seconds
    more = min(most["vmap"], _FEW * few["vmap"])
    if more > few["vmap"] and timed(more, "vmap") < _CLEARLY * timed(few["vmap"], "vmap"):
        return most["vmap"], "vmap", seconds
    return few["vmap"], "vmap", seconds


def _fit(bench: Bench, wanted: int, how: How, replication: Replication) -> int:
    """Return how many slots fit into memory, by the compiler's own account of a few."""
    wanted = _rounded(wanted, bench.replica)
    limit = replication.memory_gib * _GIB if replication.memory_gib else _ROOM * hosts.agreed(_free_bytes)
    few = min(wanted, _FEW * bench.replica)
    base = max(tree.nbytes(bench.base), 1)
    each = max(1.0, (bench.replicas(few, how).memory_bytes - base) / (few / bench.replica))
    most = int((limit - base) / each) * bench.replica
    if most < bench.replica:
        raise ValueError(
            f"{bench.member.method}: one run needs {(base + each) / _GIB:.1f} GiB of {limit / _GIB:.1f} GiB; "
            f"use a smaller batch, a smaller base, a device with more memory, or, in a sweep on a CPU, "
            f"hydra.launcher.cpu_devices=1."
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
    return int(available.split()[1]) * 1024 / jax.local_device_count() / runtime.sharers()
