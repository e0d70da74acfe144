"""How far runs of one adaptation part that should be the same: distances, their growth, and what a seed does.

With d(s) a distance at step s, of one arm and seed from the reference's run of the same seed:

    update     d(s) = ‖ΔW - ΔW_ref‖_F / ‖ΔW_ref‖_F
    loss       d(s) = |L - L_ref| / L_ref, of held-out text of the target
    growth     λ of the least-squares line ln d(s) = c + λ s over the steps at which d > 0, per step: what a Lyapunov
               exponent would be if the distance grew exponentially all the way
    ratio      d at the end / the mean d between two seeds of the reference at the end

Intervals are Student's over seeds.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from adaptlab import stats
from adaptlab.report import curves as cv
from adaptlab.report import files
from adaptlab.report.claims import rule
from adaptlab.report.numerics_words import apart_from, scientific, with_interval
from adaptlab.report.words import number

__all__ = ["Expectation", "expectation", "print_numerics", "summarise_numerics", "write_numerics"]

QUANTITIES = ("update", "loss", "growth", "ratio")


class Expectation(NamedTuple):
    """What was expected of arms before the runs.

    Attributes:
      statement: in words.
      arms: every one of them is to meet it.
      quantity: "update", "loss" or "ratio" at the end, or "growth".
      margin, ceiling: the region; None is open.
      level: of all the arms' intervals together (Bonferroni's).
    """

    statement: str
    arms: Sequence[str]
    quantity: str
    margin: float | None
    ceiling: float | None
    level: float


def expectation(
    statement: str,
    arms: Sequence[str],
    quantity: str,
    *,
    margin: float | None = None,
    ceiling: float | None = None,
    level: float = 0.95,
) -> Expectation:
    """State an expectation; see `Expectation`.

    Raises:
      ValueError: a quantity that is none, no arm, or no region.
    """
    if quantity not in QUANTITIES:
        raise ValueError(f"quantity={quantity!r} is none of {list(QUANTITIES)}.")
    if not arms or (margin is None and ceiling is None):
        raise ValueError(f"{statement!r} needs arms, and a margin or a ceiling.")
    return Expectation(statement, arms, quantity, margin, ceiling, level)


def summarise_numerics(
    curves: pa.Table,
    results: Mapping[str, Mapping[str, Any]],
    seeds_apart: Mapping[int, Sequence[float]],
    expectations: Mapping[str, Expectation],
    *,
    target: str,
    reference: str = "reference",
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Return the summary of a study of numerics.

    Args:
      curves: of all runs, see `adaptlab.report.from_journals`.
      results: `{run: {"method" (the arm), "seed", "mesh", "delta_digest"}}`.
      seeds_apart: `{step: d of every two seeds}`, see `adaptlab.study.between_seeds`.
      expectations: judged on the arms there are.
      target: the domain adapted to.
      reference: the arm that the others are compared with.
      confidence: the level of the intervals.
    """
    by_arm: dict[str, dict[int, str]] = {}
    for run, result in results.items():
        by_arm.setdefault(result["method"], {})[result["seed"]] = run
    metric, own = f"held_out/{target}/loss", by_arm.pop(reference)
    losses = {seed: cv.series(curves, run, metric) for seed, run in own.items()}
    last = max(seeds_apart)
    yardstick = float(np.mean(seeds_apart[last])) if seeds_apart[last] else math.nan
    final = [float(one.values_N[-1]) for one in losses.values()]
    arms = {}
    for name, runs in by_arm.items():
        paths = [_paths(curves, run, own[seed], metric) for seed, run in runs.items()]
        arms[name] = _arm(paths, yardstick, confidence) | {"mesh": results[next(iter(runs.values()))]["mesh"]}
    return {
        "target": target,
        "confidence": confidence,
        "steps": int(last),
        "seeds": sorted(own),
        "reference": {"loss": stats.interval(final, confidence)._asdict()},
        "between_seeds": {str(step): [*map(float, found)] for step, found in seeds_apart.items()},
        "yardstick": yardstick,
        "arms": arms,
        "alike": _alike(by_arm, results),
        "expectations": {name: _judged(one, arms) for name, one in expectations.items()},
    }


def _alike(by_arm: Mapping[str, Mapping[int, str]], results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The arms that ended in the same bits as one another, seed by seed, in groups of two or more."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, runs in by_arm.items():
        groups.setdefault(tuple(results[runs[seed]]["delta_digest"] for seed in sorted(runs)), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


class _Paths(NamedTuple):
    """Of one seed: `{step: d}` of update and loss, and the first update whose training loss differs (None: none)."""

    update: dict[int, float]
    loss: dict[int, float]
    first: int | None


def _paths(curves: pa.Table, run: str, reference: str, metric: str) -> _Paths:
    mine, theirs = (cv.series(curves, one, metric) for one in (run, reference))
    loss = {
        int(s): abs(float(a) - float(b)) / float(b)
        for s, a, b in zip(mine.steps_N, mine.values_N, theirs.values_N, strict=False)
    }
    trained, other = (cv.series(curves, one, "train/loss") for one in (run, reference))
    differ = [int(s) for s, a, b in zip(trained.steps_N, trained.values_N, other.values_N, strict=False) if a != b]
    update = cv.series(curves, run, "parting/update")
    return _Paths(
        dict(zip(map(int, update.steps_N), map(float, update.values_N), strict=True)), loss, min(differ, default=None)
    )


def _arm(paths: Sequence[_Paths], yardstick: float, confidence: float) -> dict[str, Any]:
    ends = [path.update[max(path.update)] for path in paths]
    by_seed = {
        "update": ends,
        "loss": [path.loss[max(path.loss)] for path in paths],
        "growth": [_growth(path.update) for path in paths],
        "ratio": [end / yardstick for end in ends],
    }
    return {
        **{quantity: stats.interval(values, confidence)._asdict() for quantity, values in by_seed.items()},
        "by_seed": by_seed,
        "first_step_apart": [path.first for path in paths],
        "same_bits": all(path.first is None and not any(path.update.values()) for path in paths),
        "paths": {kind: [getattr(path, kind) for path in paths] for kind in ("update", "loss")},
    }


def _growth(distance: Mapping[int, float]) -> float:
    """λ of ln d = c + λ s; nan unless d > 0 at three steps at least."""
    points = [(step, math.log(d)) for step, d in distance.items() if d > 0]
    if len(points) < 3:
        return math.nan
    return float(np.polyfit([step for step, _ in points], [d for _, d in points], 1)[0])


def _judged(one: Expectation, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The verdict: every arm's interval, at its share of the level, lies in the region, or one's lies outside."""
    there = [name for name in one.arms if name in arms]
    level, said = 1 - (1 - one.level) / max(1, len(one.arms)), {}
    for name in there:
        interval = stats.interval(arms[name]["by_seed"][one.quantity], level)
        known = math.isfinite(interval.low) and math.isfinite(interval.high)
        margin = -math.inf if one.margin is None else one.margin
        said[name] = rule(interval, margin, one.ceiling) if known else "inconclusive"
    verdict = "inconclusive"
    if "contradicted" in said.values():
        verdict = "contradicted"
    elif len(there) == len(one.arms) and set(said.values()) == {"supported"}:
        verdict = "supported"
    return {**one._asdict(), "arms": list(one.arms), "verdict": verdict, "by_arm": said, "level_of_each": level}


def print_numerics(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print how far each arm parts from the reference."""
    console = Console() if console is None else console
    level, seeds = f"{summary['confidence']:.0%}", len(summary["seeds"])
    caption = f"after {summary['steps']} updates; {seeds} seeds; brackets: {level} interval over seeds"
    table = Table(title="How far runs part from the reference", caption=caption)
    table.add_column("arm")
    for name in ("update", "share of another seed's", "held-out loss", "growth per step", "losses differ from update"):
        table.add_column(name, justify="right")
    for name, arm in summary["arms"].items():
        cells = [with_interval(arm[key]) for key in ("update", "ratio", "loss")]
        growth = with_interval(arm["growth"], lambda x: number(x, 3, sign=True))
        table.add_row(name, *cells, growth, apart_from(arm["first_step_apart"]))
    table.add_row("another seed", scientific(summary["yardstick"]), "1", "", "", "")
    console.print(table)
    for names in summary["alike"]:
        console.print(f"The same bits as one another: {', '.join(names)}.", highlight=False, markup=False)
    for row in summary["expectations"].values():
        console.print(f"{row['verdict']}: {row['statement']}", highlight=False, markup=False)


def write_numerics(
    folder: Path,
    curves: pa.Table,
    results: Mapping[str, Mapping[str, Any]],
    summary: Mapping[str, Any],
    passport: Mapping[str, Any],
    config_yaml: str,
    *,
    question: str,
) -> Path:
    """Write `curves.parquet`, three JSON files, `figures/` and, last, `report.html`; return its path.

    Args:
      folder: the study's.
      curves, results: of its runs.
      summary: from `summarise_numerics`.
      passport: of the study.
      config_yaml: its resolved config.
      question: what it asks.
    """
    # matplotlib and jinja2 are slow to import and needed only now.
    from adaptlab.report.figures import save_figure
    from adaptlab.report.numerics_page import draw_numerics, render_numerics

    cv.save_curves(folder / "curves.parquet", curves)
    for name, value in {"runs": results, "passport": passport, "summary": summary}.items():
        files.save_json(folder / f"{name}.json", value)
    figures = draw_numerics(summary)
    for name, figure in figures.items():
        save_figure(folder / "figures" / name, figure)
    page = render_numerics(summary, figures, passport, config_yaml, question)
    files.replace(folder / "report.html", page.encode())
    return folder / "report.html"
