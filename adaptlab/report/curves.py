"""Curves: every measurement of a study in one long table with the columns run, step, metric and value.

What a run is (method, learning rate, seed, …) is not repeated on every row; it stands in `runs.json`, next
to `curves.parquet`, as `{run: {attribute: value}}`.
"""

import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adaptlab.report import files
from adaptlab.report.sink import Row, read_journal

__all__ = [
    "SCHEMA",
    "Series",
    "from_journals",
    "load_curves",
    "make_curves",
    "metrics",
    "runs",
    "save_curves",
    "series",
]

SCHEMA = pa.schema([("run", pa.string()), ("step", pa.int64()), ("metric", pa.string()), ("value", pa.float64())])


class Series(NamedTuple):
    """One metric of one run, by increasing step."""

    steps_N: np.ndarray
    values_N: np.ndarray


def make_curves(rows: Iterable[tuple[str, int, str, float]]) -> pa.Table:
    """Return the table of (run, step, metric, value) rows, sorted by run, metric and step.

    Raises:
      ValueError: a run has two values of one metric at one step.
    """
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    table = pa.table([pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA)
    table = table.sort_by([(name, "ascending") for name in ("run", "metric", "step")])
    _check_unique(table)
    return table


def from_journals(journals: Mapping[str, str | os.PathLike | list[Row]]) -> pa.Table:
    """Return the curves of runs from their journals, given as `{run: path}` (or rows already read)."""
    read = {run: j if isinstance(j, list) else read_journal(j) for run, j in journals.items()}
    return make_curves(
        (run, row.step, metric, value)
        for run, rows in read.items()
        for row in rows
        for metric, value in row.metrics.items()
    )


def save_curves(path: str | os.PathLike, curves: pa.Table) -> None:
    """Write a table of curves as Parquet, atomically."""
    buffer = io.BytesIO()
    pq.write_table(curves.cast(SCHEMA), buffer, compression="zstd")
    files.replace(path, buffer.getvalue())


def load_curves(path: str | os.PathLike) -> pa.Table:
    """Read a table of curves.

    Raises:
      ValueError: the file's columns are not those of `SCHEMA`.
    """
    table = pq.read_table(Path(path))
    if table.schema.names != SCHEMA.names:
        raise ValueError(f"{path} has the columns {table.schema.names}; curves have {SCHEMA.names}.")
    return table.cast(SCHEMA)


def runs(curves: pa.Table) -> list[str]:
    """The names of the runs, sorted."""
    return sorted(curves["run"].unique().to_pylist())


def metrics(curves: pa.Table, run: str | None = None) -> list[str]:
    """The names of the metrics (of one run), sorted."""
    rows = curves if run is None else _where(curves, "run", run)
    return sorted(rows["metric"].unique().to_pylist())


def series(curves: pa.Table, run: str, metric: str) -> Series:
    """Return one metric of one run, as arrays.

    Raises:
      KeyError: there is no such run, or it has no such metric; the error lists those there are.
    """
    rows = _where(_where(curves, "run", run), "metric", metric)
    if not rows.num_rows:
        known = metrics(curves, run)
        there = f"run {run!r} has the metrics {known}" if known else f"the runs are {runs(curves)}"
        raise KeyError(f"No metric {metric!r} of run {run!r}: {there}.")
    steps_N, values_N = rows["step"].to_numpy(), rows["value"].to_numpy()
    order_N = np.argsort(steps_N)
    return Series(steps_N[order_N], values_N[order_N])


def _where(table: pa.Table, column: str, value: str) -> pa.Table:
    """Filter by a mask: an expression is planned anew each time, and a sweep's report asks for thousands of series."""
    return table.filter(pc.equal(table[column], value))  # pyright: ignore[reportAttributeAccessIssue] (made on import)


def _check_unique(table: pa.Table) -> None:
    counts = table.group_by(["run", "metric", "step"]).aggregate([([], "count_all")])
    twice = counts.filter(pc.field("count_all") > 1)
    if twice.num_rows:
        first = twice.slice(0, 1).to_pylist()[0]
        raise ValueError(
            f"Run {first['run']!r} has {first['count_all']} values of {first['metric']!r} at step "
            f"{first['step']}. A resumed run must cut its journal at the step it resumes from "
            f"(`truncate_journal`) before it measures that step again."
        )
