"""A plan on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from adaptlab.plan.collectives import totals
from adaptlab.plan.planner import ESTIMATED, Plan

__all__ = ["print_plan", "readable"]

_GIB = 2.0**30
_PREFIXES = {"Y": 1e24, "Z": 1e21, "E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}


def readable(number: float, unit: str) -> str:
    """Return a number with three digits and a prefix.

    >>> readable(1.5e12, "FLOP")
    '1.5 TFLOP'
    """
    prefix, scale = next(((p, s) for p, s in _PREFIXES.items() if number >= s), ("", 1.0))
    return f"{number / scale:.3g} {prefix}{unit}"


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
    _say(console, _heading(plan))
    if plan.backend == "cpu":
        why = "Compiled by the CPU's backend (for a TPU's: pip install 'adaptlab[tpu]'). Only estimates: "
        _say(console, why + "; ".join(ESTIMATED) + ".")
    total, room = sum(plan.memory.values()) / _GIB, plan.chip.hbm / _GIB
    _say(console, f"{'FITS' if plan.fits else 'DOES NOT FIT'}: {total:.2f} of {room:.2f} GiB a chip")
    table = Table("memory of a chip", "GiB", box=None)
    for kind, size in plan.memory.items():
        table.add_row(kind, f"{size / _GIB:.3f}")
    console.print(table)
    if not plan.fits:
        _print_refusal(plan, console, found, tried)
    if plan.roofline is not None:
        _print_times(plan, console)
    if largest is not None:
        compiled = f"{largest['refused']} do not fit; {len(largest['tried'])} compiled"
        _say(console, f"Largest batch: {largest['batch_size']} rows ({compiled})")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _heading(plan: Plan) -> str:
    job, facts = plan.job, plan.facts
    mesh = " x ".join(f"{axis}={size}" for axis, size in facts["mesh"].items() if size > 1) or "one chip"
    slices = f" x {job.slices} slices" if job.slices > 1 else ""
    return (
        f"{readable(facts['parameters'], 'parameters')}, {readable(facts['trained'], 'trained')}, on {plan.chips} "
        f"{plan.chip.name} chips ({job.topology}{slices}; {mesh}), {job.batch_size} x {job.length} tokens a step in "
        f"{job.accumulate} microbatch{'es' if job.accumulate > 1 else ''}"
    )


def _print_refusal(plan: Plan, console: Console, found: Sequence[Mapping[str, Any]], tried: Sequence[str]) -> None:
    table = Table("largest buffers", "shape", "GiB", "kind", box=None)
    for one in plan.facts["largest"]:
        table.add_row(one["what"][-90:], one["shape"], f"{one['bytes'] / _GIB:.3f}", one["kind"])
    console.print(table)
    for one in found:
        _say(console, f"would fit: {' '.join(one['overrides'])}  ({one['memory'] / _GIB:.2f} GiB, compiled)")
    for one in tried:
        _say(console, f"does not: {one}")


def _print_times(plan: Plan, console: Console) -> None:
    assert plan.roofline is not None
    times, done = plan.roofline, plan.facts["work"]
    rows = Table("collective", "axes", "slices", "count", "GB sent a chip", box=None)
    for one in totals(plan.facts["collectives"]):
        across = "across" if one["crosses_slices"] else "inside"
        rows.add_row(one["kind"], ", ".join(one["axes"]), across, str(one["count"]), f"{one['bytes'] / 1e9:.4g}")
    console.print(rows)
    intensity, ridge = done["flops"] / max(done["bytes"], 1), plan.chip.peak / plan.chip.hbm_bandwidth
    _say(
        console,
        f"a step: {readable(plan.facts['model_flops'], 'FLOP')}; of a chip {readable(done['flops'], 'FLOP')} and "
        f"{readable(done['bytes'], 'B')} ({intensity:.0f} FLOP a byte; the chip's ridge is at {ridge:.0f})",
    )
    table = Table("roofline", "ms", box=None)
    for name, seconds in times._asdict().items():
        table.add_row(name, f"{1000 * seconds:.4g}")
    console.print(table)
    _say(
        console,
        f"step time at best {1000 * times.step:.4g} ms, all overlapping ({1000 * times.serial:.4g} ms if no "
        f"communication did); MFU {100 * (plan.mfu or 0):.1f}%; limited by {plan.limit}",
    )
    if (cost := plan.budget) is not None:
        _say(
            console,
            f"{cost.tokens:.3g} tokens, at best: {cost.steps} steps, {cost.hours:.3g} h, {cost.chip_hours:.4g} chip "
            f"hours, {cost.energy:.4g} kWh, {cost.carbon:.4g} kg CO2e (estimates; power of a chip: "
            f"{plan.chip.power_source})",
        )
