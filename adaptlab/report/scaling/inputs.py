"""Tables for scaling laws, from a file, from this project's runs, or from runs logged to W&B."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adaptlab.report import wandb_runs
from adaptlab.scaling.table import Table, load_table, make_table

__all__ = ["load_rows"]

_ONLINE = "wandb:"


def load_rows(source: str, every_step: bool = False) -> Table:
    """Return the rows of a table.

    Args:
      source: a CSV or Parquet file; a folder with `curves.parquet` and `runs.json`, as a study or a sweep leaves it; a
        folder of W&B runs that stayed offline, or of several of them; or `wandb:entity/project`.
      every_step: of runs, return a row for each step. Otherwise one for each run, with the last value of each metric.

    Returns:
      Of runs, the columns are `run`, `step`, the run's attributes or settings, and its metrics.

    Raises:
      FileNotFoundError, ValueError: there is no such thing, or nothing in it can be read.
    """
    if source.startswith(_ONLINE):
        return _of_logged(source, wandb_runs.online_runs(source[len(_ONLINE) :].strip("/"), every_step), every_step)
    path = Path(source).expanduser()
    if not path.is_dir():
        return load_table(path)
    if (path / "curves.parquet").is_file():
        return _of_study(path, every_step)
    if wandb_runs.is_offline(path):
        return _of_logged(str(path), wandb_runs.offline_runs(path), every_step)
    holds = sorted(entry.name for entry in path.iterdir())[:20]
    raise ValueError(
        f"{path} is a folder with neither curves.parquet (a study's or a sweep's folder) nor *.wandb (offline runs of "
        f"W&B); it has: {holds}. Name a CSV or Parquet file in it."
    )


def _of_study(folder: Path, every_step: bool) -> Table:
    """One row for each run (and step): its attributes from `runs.json`, and its metrics."""
    from adaptlab.report.curves import load_curves

    path = folder / "runs.json"
    attributes = json.loads(path.read_text()) if path.is_file() else {}
    curves = load_curves(folder / "curves.parquet")
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    columns = [curves[name].to_pylist() for name in ("run", "step", "metric", "value")]
    for run, step, metric, value in sorted(zip(*columns, strict=True), key=lambda row: row[1]):
        row = rows.setdefault((run, step) if every_step else (run,), {"run": run})
        row |= {"step": step, metric: value}
    given = {run: {k: v for k, v in one.items() if _is_cell(v)} for run, one in attributes.items()}
    return _table(str(folder), ({**given.get(row["run"], {}), **row} for row in rows.values()))


def _of_logged(source: str, runs: Iterable[wandb_runs.LoggedRun], every_step: bool) -> Table:
    rows = []
    for run in runs:
        for row in run.rows if every_step else [run.summary]:
            step = {"step": row["_step"]} if "_step" in row and "step" not in row else {}
            # A setting that is called as a metric would be hidden by it.
            settings = {f"config.{k}" if k in row else k: v for k, v in run.config.items()}
            rows.append({"run": run.name, **settings, **step, **row})
    return _table(source, rows)


def _table(source: str, rows: Iterable[Mapping[str, Any]]) -> Table:
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return make_table(source, {name: [row.get(name) for row in rows] for name in names}, "row")


def _is_cell(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
