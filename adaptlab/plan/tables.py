"""A plan on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from adaptlab.plan.collectives import totals
from adaptlab.plan.planner import ESTIMATED, Plan

__all__ = ["print_plan", "readable"]

_GIB = 2.0**30


def readable(number: float, unit: str) -> str:
    """Return a number with three digits and a prefix.

    >>> readable(1.5e12, "FLOP")
    '1.5 TFLOP'
    """
    for prefix, scale in (("Y", 1e24), ("Z", 1e21), ("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= scale:
            return f"{number / scale:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}"


def print_plan(
    plan: Plan,
    console: Console,
    *,
    found: Sequence[Mapping[str, Any]] = (),
    tried: Sequence[str] = (),
    largest: Mapping[str, Any] | None = None,
) -> None:
    """Print what a plan says.

    Args:
      plan: the plan.
      console: where to.
      found: suggestions that were compiled and fit.
      tried: those that did not.
      largest: what the search for the largest batch found.
    """
    job, facts = plan.job, plan.facts
    mesh = " x ".join(f"{axis}={size}" for axis, size in facts["mesh"].items() if size > 1) or "one chip"
    console.print(
        f"{readable(facts['parameters'], 'parameters')}, {readable(facts['trained'], 'trained')}, on {plan.chips} "
        f"{plan.chip.name} chips ({job.topology}{f' x {job.slices} slices' if job.slices > 1 else ''}; {mesh}), "
        f"{job.batch_size} x {job.length} tokens a step in {job.accumulate} microbatch(es)",
        highlight=False,
    )
    if plan.backend == "cpu":
        console.print(
            f"Compiled by the CPU's backend (for a TPU's: pip install 'adaptlab[tpu]'). Only estimates: "
            f"{'; '.join(ESTIMATED)}.",
            highlight=False,
        )
    verdict = "fits" if plan.fits else "does not fit"
    console.print(
        f"[bold]{verdict}[/bold]: {sum(plan.memory.values()) / _GIB:.2f} of {plan.chip.hbm / _GIB:.2f} GiB a chip",
        highlight=False,
    )
    console.print(_memory(plan))
    if not plan.fits:
        _print_refusal(plan, console, found, tried)
    if plan.roofline is not None:
        _print_times(plan, console)
    if largest is not None:
        console.print(
            f"Largest batch: {largest['batch_size']} rows ({largest['refused']} do not fit; {len(largest['tried'])} "
            f"compiled)",
            highlight=False,
        )


def _memory(plan: Plan) -> Table:
    table = Table("memory of a chip", "GiB", box=None)
    for kind, size in plan.memory.items():
        table.add_row(kind, f"{size / _GIB:.3f}")
    return table


def _print_refusal(plan: Plan, console: Console, found: Sequence[Mapping[str, Any]], tried: Sequence[str]) -> None:
    table = Table("largest buffers", "shape", "GiB", "kind", box=None)
    for one in plan.facts["largest"]:
        table.add_row(one["what"][-90:], one["shape"], f"{one['bytes'] / _GIB:.3f}", one["kind"])
    console.print(table)
    for one in found:
        console.print(
            f"would fit: {' '.join(one['overrides'])}  ({one['memory'] / _GIB:.2f} GiB, compiled)", highlight=False
        )
    for one in tried:
        console.print(f"does not: {one}", highlight=False, markup=False)


def _print_times(plan: Plan, console: Console) -> None:
    assert plan.roofline is not None
    times, done = plan.roofline, plan.facts["work"]
    rows = Table("collective", "axes", "slices", "count", "GB sent a chip", box=None)
    for one in totals(plan.facts["collectives"]):
        across = "across" if one["crosses_slices"] else "inside"
        rows.add_row(
            str(one["kind"]),
            ", ".join(one["axes"]),
            across,
            str(one["count"]),
            f"{one['bytes'] / 1e9:.3f}",  # type: ignore[arg-type]
        )
    console.print(rows)
    intensity, ridge = done["flops"] / max(done["bytes"], 1), plan.chip.peak / plan.chip.hbm_bandwidth
    console.print(
        f"a step: {readable(plan.facts['model_flops'], 'FLOP')}; of a chip {readable(done['flops'], 'FLOP')} and "
        f"{readable(done['bytes'], 'B')} ({intensity:.0f} FLOP a byte; the chip's ridge is at {ridge:.0f})",
        highlight=False,
    )
    table = Table("roofline", "ms", box=None)
    for name, seconds in times._asdict().items():
        table.add_row(name, f"{1000 * seconds:.2f}")
    console.print(table)
    console.print(
        f"step time at best {1000 * times.step:.1f} ms, all overlapping ({1000 * times.serial:.1f} ms if no "
        f"communication did); MFU {100 * (plan.mfu or 0):.1f}%; limited by {plan.limit}",
        highlight=False,
    )
    _print_budget(plan, console)


def _print_budget(plan: Plan, console: Console) -> None:
    cost = plan.budget
    if cost is None:
        return
    console.print(
        f"{cost.tokens:.3g} tokens, at best: {cost.steps} steps, {cost.hours:.3g} h, {cost.chip_hours:.4g} chip hours, "
        f"{cost.energy:.4g} kWh, {cost.carbon:.4g} kg CO2e (estimates; power of a chip: {plan.chip.power_source})",
        highlight=False,
    )
