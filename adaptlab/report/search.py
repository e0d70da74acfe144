"""The account of a search: what was tried, what it was selected on, and what the finalists gain on fresh text."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from adaptlab import stats
from adaptlab.report import curves as cv
from adaptlab.report import files
from adaptlab.report.search_words import ordered, per_million, sentences
from adaptlab.report.words import count, number, spread

__all__ = [
    "BUDGETS",
    "finalists",
    "gains_at",
    "pareto",
    "print_search",
    "summarise_search",
    "write_search",
]

BUDGETS = (1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6, 1e7, 1e8)
"""Of parameters: for each, the largest gain that needs no more."""

Results = Mapping[str, Mapping[str, Any]]


def pareto(points: Mapping[str, tuple[int, float]]) -> list[str]:
    """Return the names on the front of parameters and gain: no other has as much gain with as few parameters.

    Args:
      points: `{name: (parameters, gain)}`.

    >>> pareto({"a": (10, 0.1), "b": (100, 0.3), "c": (200, 0.2)})
    ['a', 'b']
    """
    front, best = [], -math.inf
    for name, (_, gain) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if gain > best:
            front.append(name)
            best = gain
    return front


def gains_at(curves: pa.Table, results: Results, target: str, step: int, base_loss: float) -> dict[str, float]:
    """Return what each method had gained at a step, by name; those that diverged before are left out."""
    found = {}
    for run, result in results.items():
        loss = cv.series(curves, run, f"held_out/{target}/loss")
        values = loss.values_N[loss.steps_N == step]
        if len(values) and math.isfinite(values[0]):
            found[result["method"]] = base_loss - float(values[0])
    return found


def finalists(results: Results, gains: Mapping[str, float], most: int) -> list[str]:
    """Return the methods that are trained again: those that ran to the end, and the front of all.

    A reward per parameter keeps the smallest methods alone. A method that it ended may be the best of its size, so the
    places that are left go to the front of gain and parameters, from the largest gain down.

    Args:
      results: of the search, one run for each method.
      gains: by method, at a step that all reached.
      most: how many, at most.
    """
    runs = {run["method"]: run for run in results.values() if run["method"] in gains}
    ended = [name for name, run in runs.items() if run["pruned_at"] is None and run["target_loss"] is not None]
    front = pareto({name: (run["trainable_parameters"], gains[name]) for name, run in runs.items()})
    others = [name for name in front if name not in ended]
    return [*sorted(ended, key=lambda name: -gains[name]), *sorted(others, key=lambda name: -gains[name])][:most]


def summarise_search(
    said: Mapping[str, str],
    selection: Results,
    fresh: Results,
    base: Mapping[str, float],
    kind: str,
    *,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Return the account of a search.

    Gains are in nats per token. Those of "selection" have one seed and the text by which the search chose: the winner's
    is too large by its luck. Those of "fresh" have other seeds and other text.

    Args:
      said: each configuration in words, by name.
      selection: the results of the search, one run for each configuration.
      fresh: the results of the finalists.
      base: the base's target loss on the text of the "selection", and on that of the "fresh" runs.
      kind: the reward of the search, "gain" or "gain_per_parameter".
      confidence: the level of the intervals over seeds.
    """
    rows = {}
    for run in selection.values():
        loss, parameters = run["target_loss"], run["trainable_parameters"]
        gain = math.nan if loss is None else base["selection"] - loss
        rows[run["method"]] = {
            "said": said[run["method"]],
            "lr": run["lr"],
            "parameters": parameters,
            "steps": run["pruned_at"] or run["diverged_at"] or run["steps"],
            "ended": "diverged" if loss is None else "pruned" if run["pruned_at"] is not None else "complete",
            "selection": {"gain": gain, "per_parameter": gain / max(parameters, 1)},
            "fresh": None,
        }
    for name, row in rows.items():
        runs = [run for run in fresh.values() if run["method"] == name]
        if runs:
            gains = [math.nan if r["target_loss"] is None else base["fresh"] - r["target_loss"] for r in runs]
            each = [gain / max(row["parameters"], 1) for gain in gains]
            row["fresh"] = {
                "gain": stats.interval(gains, confidence)._asdict(),
                "per_parameter": stats.interval(each, confidence)._asdict(),
                "seeds": [run["seed"] for run in runs],
            }
    means = {n: (row["parameters"], row["fresh"]["gain"]["mean"]) for n, row in rows.items() if row["fresh"]}
    means = {name: point for name, point in means.items() if math.isfinite(point[1])}
    return {
        "reward": kind,
        "confidence": confidence,
        "base": dict(base),
        "configurations": rows,
        "front": pareto(means),
        "budgets": _budgets(means),
    }


def _budgets(points: Mapping[str, tuple[int, float]]) -> list[dict[str, Any]]:
    """The finalist of the largest mean gain among those of at most N parameters, wherever another N changes it."""
    found: list[dict[str, Any]] = []
    for budget in BUDGETS:
        within = {name: gain for name, (parameters, gain) in points.items() if parameters <= budget}
        best = max(within, key=within.__getitem__, default=None)
        if best is not None and (not found or found[-1]["best"] != best):
            found.append({"budget": budget, "best": best})
    return found


def write_search(
    folder: Path, search: Mapping[str, Any], passport: Mapping[str, Any], config_yaml: str, *, question: str
) -> Path:
    """Write `figures/front.png`, `figures/front.svg` and, last, `report.html`; return its path.

    Args:
      folder: the study's.
      search: from `summarise_search`.
      passport: of the study.
      config_yaml: its resolved config.
      question: what the search asks.
    """
    # matplotlib and jinja2 are slow to import and needed only now.
    from adaptlab.report.figures import save_figure
    from adaptlab.report.search_page import draw_front, render_search

    figure = draw_front(search)
    save_figure(folder / "figures" / "front", figure)
    page = render_search(search, figure, passport, config_yaml, question)
    files.replace(folder / "report.html", page.encode())
    return folder / "report.html"


def print_search(search: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the configurations, the finalists first, and the best one for each budget of parameters."""
    console = Console() if console is None else console
    level, caption = f"{search['confidence']:.0%}", "nats/token; per million parameters: gain / (N / 10^6)"
    table = Table(title="Configurations", caption=f"{caption}; brackets: {level} interval over seeds")
    table.add_column("")
    table.add_column("configuration")
    for name in ("lr", "parameters", "steps", "gain, selected on", "gain, fresh", "fresh per million"):
        table.add_column(name, justify="right")
    for name, row in ordered(search):
        fresh = row["fresh"]
        table.add_row(
            *(f"{name}*" if name in search["front"] else name, row["said"], f"{row['lr']:g}"),
            *(count(row["parameters"]), str(row["steps"]), number(row["selection"]["gain"])),
            *(("", "") if fresh is None else (spread(fresh["gain"]), spread(per_million(fresh["per_parameter"]), 2))),
        )
    console.print(table)
    for sentence in sentences(search):
        console.print(sentence, highlight=False, markup=False)
