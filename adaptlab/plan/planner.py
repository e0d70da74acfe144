"""A plan: whether a job fits, what limits it, how long it takes and what it costs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from adaptlab.plan.budget import Budget, budget
from adaptlab.plan.chips import Chip
from adaptlab.plan.collectives import totals
from adaptlab.plan.compiler import Facts
from adaptlab.plan.job import Job
from adaptlab.plan.roofline import Roofline, roofline
from adaptlab.plan.topology import parse_topology

__all__ = ["LIMITS", "Costs", "Plan", "assess", "memory_per_chip"]

LIMITS = {
    "compute": "matrix products",
    "memory": "memory bandwidth",
    "interconnect": "interconnect",
    "network": "data-centre network",
}

ESTIMATED = (
    "memory_per_chip: activations, temporaries, program",
    "fits",
    "collectives",
    "step_time",
    "mfu",
    "limit",
)
"""What is only an estimate where the CPU's backend compiled, which fuses and schedules otherwise than a TPU's."""


class Costs(NamedTuple):
    """What a budget is computed with.

    Attributes:
      tokens: to train on.
      power: watts of one chip, or None: what is known of it.
      pue: power usage effectiveness.
      grid: kilograms of CO2 equivalent per kilowatt hour.
    """

    tokens: float
    power: float | None
    pue: float
    grid: float


class Plan(NamedTuple):
    """What is known of a job.

    Attributes:
      job: what was planned.
      backend: "tpu" or "cpu", whose compiler it is from.
      chip: what it would run on.
      chips: how many.
      fits: whether the step fits in a chip's memory, with the base that is kept beside it.
      memory: bytes of one chip by kind; empty if nothing is known.
      roofline: the times of a step; None if nothing is known.
      mfu: model FLOPs utilisation (arXiv:2204.02311, app. B) at `roofline.step`: what the model needs of what the chips
        could do; attention counts as if every token saw every other. None likewise.
      budget: of the tokens; None likewise.
      facts: what the compiler's process said.
    """

    job: Job
    backend: str
    chip: Chip
    chips: int
    fits: bool
    memory: Mapping[str, int]
    roofline: Roofline | None
    mfu: float | None
    budget: Budget | None
    facts: Facts

    @property
    def limit(self) -> str:
        """What to improve first."""
        if not self.fits or self.roofline is None:
            return "memory capacity"
        return LIMITS[self.roofline.limit]

    def summary(self, suggestions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What plan.json holds."""
        times = self.roofline
        return {
            "fits": self.fits,
            "hbm": self.chip.hbm,
            "memory_per_chip": dict(self.memory),
            "flops": self.facts["model_flops"],
            "collectives": totals(self.facts["collectives"]),
            "step_time": None if times is None else times.step,
            "mfu": self.mfu,
            "limit": self.limit,
            "suggestions": list(suggestions),
        }

    def details(self) -> dict[str, Any]:
        """What plan_details.json holds beside it: inputs, and what the summary was computed from."""
        done, facts = self.facts["work"], self.facts
        return {
            "job": self.job._asdict(),
            "backend": self.backend,
            "estimates": [] if self.backend == "tpu" else list(ESTIMATED),
            "chip": self.chip._asdict(),
            "chips": self.chips,
            "mesh": facts["mesh"],
            "parameters": facts["parameters"],
            "trained": facts["trained"],
            "memory_by_argument": facts["memory"],
            "largest_buffers": facts["largest"],
            "refusal": facts["refusal"],
            "flops_per_token": facts["model_flops"] / (self.job.batch_size * self.job.length),
            "flops_per_chip": done and done["flops"],
            "bytes_per_chip": done and done["bytes"],
            "arithmetic_intensity": done and done["flops"] / max(done["bytes"], 1),
            "ridge": self.chip.peak / self.chip.hbm_bandwidth,
            "not_counted": [] if done is None else [*done["unseen"], *facts.get("unknown_loops", [])],
            "times": None if self.roofline is None else self.roofline._asdict(),
            "step_time_without_overlap": None if self.roofline is None else self.roofline.serial,
            "budget": None if self.budget is None else self.budget._asdict(),
            "power_source": self.chip.power_source,
            "compile_seconds": facts["seconds"],
        }


def memory_per_chip(facts: Facts) -> dict[str, int]:
    """Return bytes of one chip by kind.

    parameters: base and delta; kept: a base that the step does not read and the run still holds, to measure against.
    """
    kinds = facts["memory"]
    if kinds is None:
        return {}
    return {
        "parameters": kinds["base"] + kinds["delta"],
        "kept": facts["held"],
        **{name: kinds[name] for name in ("optimiser", "batch", "activations", "temporaries", "program")},
    }


def assess(job: Job, compiler: Callable[[Job], Facts], costs: Costs, backend: str) -> Plan:
    """Compile a job and say what follows.

    Raises:
      ValueError: a job that makes no sense, or a compiler that died.
    """
    topology, facts = parse_topology(job.topology, job.slices), compiler(job)
    chip, done = topology.chip, facts["work"]
    memory = memory_per_chip(facts)
    fits = facts["fits"] and sum(memory.values()) <= chip.hbm
    times = mfu = cost = None
    if done is not None:
        times = roofline(
            chip,
            passes=done["passes"],
            moved=done["bytes"],
            found=facts["collectives"],
            coordinates=facts["coordinates"],
            shape=topology.shape,
        )
        mfu = facts["model_flops"] / (topology.chips * chip.peak * times.step)
        cost = budget(
            costs.tokens,
            tokens_per_step=job.batch_size * job.length,
            step_time=times.step,
            chips=topology.chips,
            power=chip.power if costs.power is None else costs.power,
            pue=costs.pue,
            grid=costs.grid,
        )
    return Plan(job, backend, chip, topology.chips, fits, memory, times, mfu, cost, facts)
