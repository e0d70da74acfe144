"""Tables of what was measured of updates, apart from the curves of what runs gained and forgot.

A study has a few curves for each run, and thousands of numbers of its matrices: kept apart, neither slows the other.
The columns are those of `report.curves`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaptlab.report.curves import make_curves

__all__ = ["add_final", "final_means", "mean_over_matrices", "split_updates"]

PREFIX = "update/"


def split_updates(curves: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the curves without, and with nothing but, the metrics `update/…`."""
    mine = pc.field("metric") >= PREFIX
    mine &= pc.field("metric") < PREFIX + "\uffff"  # a range of names: strings compare by bytes
    return curves.filter(~mine), curves.filter(mine)


def add_final(updates: pa.Table, final: Mapping[str, Mapping[str, float]], steps: Mapping[str, int]) -> pa.Table:
    """Return the table with the measurements made after training, at each run's last step.

    Where a metric was measured at that step already, that measurement stays.

    Args:
      updates: from `split_updates`.
      final: `{run: {metric: value}}`.
      steps: `{run: its last step}`.
    """
    there = set(zip(*(updates[name].to_pylist() for name in ("run", "step", "metric")), strict=True))
    rows = [(run, steps[run], metric, value) for run, found in final.items() for metric, value in found.items()]
    added = make_curves(row for row in rows if row[:3] not in there)
    return pa.concat_tables([updates, added]).sort_by([(name, "ascending") for name in ("run", "metric", "step")])


def mean_over_matrices(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return `{what: mean}` of `update/<what>/<matrix>/<layer>` over all matrices and layers.

    >>> mean_over_matrices({"update/angle/query/0": 1.0, "update/angle/query/1": 3.0, "truncated/1/news/loss": 2.0})
    {'angle': 2.0}
    """
    values: dict[str, list[float]] = {}
    for metric, value in metrics.items():
        if metric.startswith(PREFIX):
            values.setdefault(metric.split("/")[1], []).append(value)
    return {what: float(np.mean(found)) for what, found in values.items()}


def final_means(
    results: Mapping[str, Mapping[str, Any]], final: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, Any]]:
    """Return runs with their means over matrices as the attribute `update`; see `report.outcomes`."""
    return {run: {**a, "update": mean_over_matrices(final.get(run, {}))} for run, a in results.items()}
