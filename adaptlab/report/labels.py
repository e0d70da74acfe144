"""The numbers of a classification study: how well each method classifies, and what became of similarities it knew."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from adaptlab import stats
from adaptlab.report import curves as cv
from adaptlab.report.outcomes import Runs
from adaptlab.report.words import number, plain, spread

__all__ = ["labels_table", "print_labels", "summarise_labels"]

_TASK = ("accuracy", "macro_f1", "loss")
_UPSTREAM = ("similarity_error", "similarity_correlation", "embedding_cosine")


def summarise_labels(
    curves: pa.Table, runs: Runs, task: str, upstream: Sequence[str], confidence: float = 0.95
) -> dict[str, Any]:
    """Return the summary of a classification study, all of it at the last step.

    Each method is represented by the learning rate with the lowest loss on the task's held-out texts, averaged over
    seeds. A rate at which a run diverged counts only if no rate is without one; its metrics are then those of the last
    step it was measured at. Intervals are Student's, over seeds, see `adaptlab.stats.interval`.

    Args:
      curves: the measurements, see `adaptlab.report.from_journals`.
      runs: `{run: {"method", "lr", "seed", "diverged_at", …}}`.
      task: the labelled corpus.
      upstream: the corpora whose similarities were measured.
      confidence: the level of the intervals.
    """
    groups: dict[str, dict[float, list[str]]] = {}
    for run, attributes in runs.items():
        groups.setdefault(attributes["method"], {}).setdefault(attributes["lr"], []).append(run)

    def row(names: Sequence[str]) -> dict[str, Any]:
        wanted = {task: _TASK, **dict.fromkeys(upstream, _UPSTREAM)}
        return {
            "seeds": [runs[run]["seed"] for run in names],
            "diverged": [run for run in names if runs[run].get("diverged_at") is not None],
            "trainable_parameters": runs[names[0]].get("trainable_parameters"),
            "final": {
                domain: {m: _interval([_series(curves, run, domain, m)[-1] for run in names], confidence) for m in some}
                for domain, some in wanted.items()
            },
        }

    rows = {method: {lr: row(names) for lr, names in rates.items()} for method, rates in groups.items()}
    first = next(iter(runs))
    chosen = {
        method: min(rates, key=lambda lr: (bool(rates[lr]["diverged"]), rates[lr]["final"][task]["loss"]["mean"]))
        for method, rates in rows.items()
    }
    return {
        "task": task,
        "upstream": list(upstream),
        "confidence": confidence,
        "base": {metric: float(_series(curves, first, task, metric)[0]) for metric in _TASK},
        "methods": {method: {"lr": lr, **rows[method][lr]} for method, lr in chosen.items()},
        "groups": [{"method": m, "lr": lr, **row} for m, rates in rows.items() for lr, row in rates.items()],
    }


def labels_table(summary: Mapping[str, Any]) -> Table:
    """Return the table of a classification study's methods, each at its best learning rate."""
    n = sorted({len(row["seeds"]) for row in summary["methods"].values()})
    caption = "one seed, so no intervals" if n == [1] else f"mean and {summary['confidence']:.0%} interval over seeds"
    table = Table(title=f"Classification of {summary['task']}, held out", caption=caption)
    table.add_column("")
    for method in summary["methods"]:
        table.add_column(plain(method), justify="right")
    rows = summary["methods"].values()
    table.add_row("learning rate", *(f"{row['lr']:g}" for row in rows))
    table.add_row("trained parameters", *(f"{row['trainable_parameters']:,}" for row in rows))
    for metric in _TASK:
        table.add_row(metric, *(spread(row["final"][summary["task"]][metric]) for row in rows))
    for domain in summary["upstream"]:
        table.add_section()
        table.add_row(plain(domain))
        for metric in _UPSTREAM:
            table.add_row(f"  {metric}", *(spread(row["final"][domain][metric]) for row in rows))
    table.add_section()
    table.add_row("base's accuracy", *(number(summary["base"]["accuracy"]) for _ in rows))
    return table


def print_labels(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table, and which runs diverged."""
    console = Console() if console is None else console
    console.print(labels_table(summary))
    for run in (run for row in summary["groups"] for run in row["diverged"]):
        console.print(f"Warning: run {run} diverged.", style="yellow", highlight=False, markup=False)


def _series(curves: pa.Table, run: str, domain: str, metric: str) -> np.ndarray:
    return cv.series(curves, run, f"held_out/{domain}/{metric}").values_N


def _interval(values: Sequence[float], confidence: float) -> dict[str, Any]:
    return stats.interval(values, confidence)._asdict()
