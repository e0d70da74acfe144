"""What would make a job fit, compiled before it is said; and the largest batch that does."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from adaptlab.config import compose, validate
from adaptlab.plan.job import Job
from adaptlab.plan.planner import Plan

__all__ = ["Change", "changes", "largest_batch", "suggestions"]


class Change(NamedTuple):
    """A change of a job.

    Attributes:
      overrides: as on the command line.
      job: the changed job.
    """

    overrides: tuple[str, ...]
    job: Job


def suggestions(plan: Plan, again: Callable[[Job], Plan], limit: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what makes a job fit, cheapest changes first, and what was tried in vain.

    Single changes come first, then one after another added up; the first that fits ends the search.

    Args:
      plan: of a job that does not fit.
      again: compiles a job.
      limit: how many to compile at most.
    """
    found, tried = [], []
    singles = list(changes(plan, plan.job))
    for change in [*singles, *_added_up(plan, singles)]:
        if len(tried) >= limit or found:
            break
        said = " ".join(change.overrides)
        try:
            one = again(change.job)
        except ValueError as error:
            tried.append(f"{said}: {error}")
            continue
        if not one.fits:
            tried.append(f"{said}: {sum(one.memory.values()) / 2**30:.2f} GiB")
            continue
        found.append(
            {
                "overrides": list(change.overrides),
                "fits": True,
                "memory": sum(one.memory.values()),
                "step_time": one.roofline and one.roofline.step,
                "mfu": one.mfu,
            }
        )
    return found, tried


def _added_up(plan: Plan, singles: Sequence[Change]) -> Iterator[Change]:
    """The changes one on top of another."""
    job, overrides = plan.job, {}
    for number, single in enumerate(singles):
        for change in changes(plan, job):
            if _keys(change) == _keys(single):
                job, overrides = change.job, {**overrides, **{one.split("=")[0]: one for one in change.overrides}}
                break
        if number:
            yield Change(tuple(overrides.values()), job)


def _keys(change: Change) -> frozenset[str]:
    return frozenset(one.split("=")[0] for one in change.overrides)


def changes(plan: Plan, job: Job) -> Iterator[Change]:
    """Yield what may make a job smaller, from what costs least to what changes most.

    Args:
      plan: what is known of the job as it was first asked for.
      job: what to change: that job, or one that has been changed already.
    """
    chip, memory = plan.chip, plan.memory
    resting = sum(memory.get(kind, 0) for kind in ("parameters", "kept", "optimiser", "batch", "program"))
    working = memory.get("activations", 0) + memory.get("temporaries", 0)
    frozen = 2 * plan.facts["trained"] < plan.facts["parameters"]
    mesh = {**plan.facts["mesh"], **{a: n for a, n in job.mesh.items() if a in plan.facts["mesh"] and n > 0}}
    if mesh["data"] > 1 and job.slices == 1:
        whole = mesh["data"] * mesh["fsdp"]
        yield Change(
            ("mesh.data=1", f"mesh.fsdp={whole}"), job._replace(mesh={**job.mesh, **mesh, "data": 1, "fsdp": whole})
        )
    if job.model.get("remat") not in (None, "full"):
        yield Change(("model.remat=full",), job._replace(model={**job.model, "remat": "full"}))
    if "attention" in job.model and job.model["attention"] == "dense":
        yield Change(("model.attention=auto",), job._replace(model={**job.model, "attention": "auto"}))
    parts = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    room = max(chip.hbm - resting, 1)
    for cut in _microbatches(job, parts, working / room if memory else 2.0):
        yield Change((f"accumulate={cut}",), job._replace(accumulate=cut))
    if mesh["data"] > 1 and job.moments is None and job.slices > 1:
        yield Change(("moments=zero1",), job._replace(moments="zero1"))
    if frozen and job.base_dtype == "float32":
        yield Change(("base_dtype=bfloat16",), job._replace(base_dtype="bfloat16"))
    if frozen and job.quantize is None:
        yield Change(("quantize=nf4",), job._replace(quantize="nf4"))
    if not frozen:
        lora = validate(compose("adapt/lora")["adapt"], "adapt")
        smaller = job._replace(adapt=lora, base_dtype="bfloat16")
        yield Change(("adapt=lora", "base_dtype=bfloat16"), smaller)


def _microbatches(job: Job, parts: int, factor: float) -> list[int]:
    """The number of microbatches that memory in proportion asks for, and the largest there can be."""
    possible = [n for n in range(1, job.batch_size + 1) if job.batch_size % (n * parts) == 0 and n > job.accumulate]
    enough = [n for n in possible if n >= job.accumulate * factor]
    return sorted({*enough[:1], *possible[-1:]}) if possible else []


def largest_batch(plan: Plan, again: Callable[[Job], Plan], limit: int) -> Mapping[str, Any]:
    """Return the largest batch that fits, by compiling: `{batch_size, refused, tried}`; 0 if none does.

    Working memory grows about in proportion to the rows of a microbatch: where that says the limit is, the search
    begins, and halves what is open between the largest that fitted and the smallest that did not.

    Args:
      plan: of a job to begin with.
      again: compiles a job.
      limit: how many to compile at most.
    """
    job, mesh = plan.job, plan.facts["mesh"]
    unit = job.accumulate * mesh["data"] * mesh["fsdp"] * mesh["expert"]
    good, bad = (job.batch_size // unit, 0) if plan.fits else (0, job.batch_size // unit)
    tried: list[dict[str, Any]] = []
    guess = _guess(plan, unit)
    while len(tried) < limit and bad != good + 1 and bad != 1:
        there = _next(good, bad, guess if not tried else 0)
        try:
            fits = again(job._replace(batch_size=there * unit)).fits
            tried.append({"batch_size": there * unit, "fits": fits})
        except ValueError as error:  # the compiler may die of a shape; then another is tried
            fits = False
            tried.append({"batch_size": there * unit, "fits": False, "error": str(error)})
        good, bad = (max(good, there), bad) if fits else (good, there)
    return {"batch_size": good * unit, "refused": bad * unit or None, "tried": tried}


def _next(good: int, bad: int, guess: int) -> int:
    if guess > good and (not bad or guess < bad):
        return guess
    if not bad:
        return max(1, 2 * good)
    return (good + bad) // 2


def _guess(plan: Plan, unit: int) -> int:
    memory = plan.memory
    working = memory.get("activations", 0) + memory.get("temporaries", 0)
    if not working:
        return 0
    room = plan.chip.hbm - (sum(memory.values()) - working)
    return max(1, math.floor(0.97 * plan.job.batch_size / unit * room / working)) if room > 0 else 1
