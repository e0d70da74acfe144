"""A job that cannot fit is refused before it is queued."""

import json
from pathlib import Path

from adaptlab.config import ConfigError

__all__ = ["refuse_unless_it_fits"]


def refuse_unless_it_fits(path: str | Path) -> None:
    """Read what `python -m scripts.plan` found, and refuse a job that does not fit.

    Args:
      path: `plan.json`; its key `fits` decides.

    Raises:
      ConfigError: the job does not fit: with the memory it takes, and the planner's suggestions; or there is no such
        plan.
    """
    try:
        plan = json.loads(Path(path).read_text())
        fits = plan["fits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"plan={path}: not a plan ({type(error).__name__}: {error}); make one with python -m scripts.plan."
        ) from error
    if fits is True:
        return
    suggestions = [f"\n  {_text(one)}" for one in plan.get("suggestions") or []]
    remedy = f"What would make it fit:{''.join(suggestions)}" if suggestions else "Plan another mesh, batch or method."
    raise ConfigError(f"plan={path}: the job does not fit{_memory(plan)}, so it is not submitted. {remedy}")


def _memory(plan: dict) -> str:
    taken, there = plan.get("memory_per_chip"), plan.get("hbm")
    if isinstance(taken, dict):
        numbers = [v for k, v in taken.items() if isinstance(v, int | float) and k != "total"]
        taken = taken.get("total", sum(numbers))
    if not isinstance(taken, int | float) or not isinstance(there, int | float):
        return ""
    return f" ({taken / 2**30:.1f} GiB a chip, which has {there / 2**30:.1f})"


def _text(suggestion: object) -> str:
    if isinstance(suggestion, dict) and "overrides" in suggestion:
        memory = suggestion.get("memory")
        return " ".join(suggestion["overrides"]) + (f" ({memory / 2**30:.1f} GiB a chip)" if memory else "")
    return suggestion if isinstance(suggestion, str) else json.dumps(suggestion)
