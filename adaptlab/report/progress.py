"""Progress on the terminal: one line per measurement."""

import math
import time
from collections.abc import Mapping

from rich.console import Console

from adaptlab.report.sink import Sink

__all__ = ["progress"]


def progress(
    name: str, total_steps: int, target: str, *, last_only: bool = False, console: Console | None = None
) -> Sink:
    """Return a sink that prints each measurement of a run: held-out loss by domain, and its change since the base.

    Args:
      name: the run's name.
      total_steps: its number of updates.
      target: the domain whose loss should fall; it is printed first.
      last_only: print only the last measurement, when the run ends: for runs that go on side by side.
      console: where to; by default standard output.
    """
    out, base, last, begun = console or Console(highlight=False), {}, {}, time.monotonic()
    kept: list[str] = []

    def write(step: int, metrics: Mapping[str, float]) -> None:
        last.update({k: v for k, v in metrics.items() if k == "train/loss"})
        losses = {k.split("/")[1]: v for k, v in metrics.items() if k.startswith("held_out/") and k.endswith("/loss")}
        if not losses:
            return
        for domain, loss in losses.items():
            base.setdefault(domain, loss)
        parts = [_part(d, losses[d], base[d]) for d in sorted(losses, key=lambda d: d != target)]
        train = f"train {last['train/loss']:.3f} | " if last else ""
        kept[:] = [f"{name}  step {step}/{total_steps}  {train}{'  '.join(parts)}  [dim]{_elapsed(begun)}[/dim]"]
        if not last_only:
            show()

    def show() -> None:
        for line in kept:
            out.print(line)
        kept.clear()

    return Sink(write=write, flush=lambda: None, close=show)


def _part(domain: str, loss: float, base: float) -> str:
    change = loss - base
    return f"{domain} {loss:.3f}" + (f" ({change:+.3f})" if change and math.isfinite(change) else "")


def _elapsed(since: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - since), 60)
    return f"{minutes}:{seconds:02d}"
