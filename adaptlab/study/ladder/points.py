"""The points of a ladder: one row for each run, what pre-training was worth in data, and the files that laws read."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptlab import report
from adaptlab.report import files
from adaptlab.report.quantities import Reading
from adaptlab.study.ladder.labs import LadderText
from adaptlab.study.ladder.plan import PRETRAINING, SCRATCH

__all__ = ["COLUMNS", "effective_data", "save_forgetting", "save_points", "with_transfer"]

COLUMNS = (
    *("run", "split", "stage", "family", "rung", "rank", "seed", "lr", "parameters", "trainable_parameters"),
    *("unique_tokens", "tokens", "steps", "flops", "target_loss", "final_target_loss", "upstream_loss", "forgetting"),
    *("effective_data", "data_transferred", "effective_data_bound"),
)
"""Of points.csv: losses in nats per token, the target's at the best step measured, upstream at the end."""

Rows = list[dict[str, Any]]


def effective_data(scratch: Mapping[float, float], loss: float) -> Reading:
    """Return the data from which a model learns, from scratch, to have a loss (arXiv:2102.01293, section 2).

    Between the amounts that were tried, log D is linear in log loss. A loss below the lowest from scratch takes at
    least the largest amount, and one above the highest at most the smallest.

    Args:
      scratch: `{D: loss}` of the same model from random weights.
      loss: of the fine-tuned model.

    >>> effective_data({1e3: 4.0, 1e5: 2.0}, 2.0 * 2**0.5).value
    10000.0
    """
    data_D = np.array(sorted(scratch), np.float64)
    # More data never counts as worse: what a larger amount did worse than a smaller one is noise of the seeds.
    loss_D = np.minimum.accumulate([scratch[d] for d in data_D])
    if loss < loss_D[-1]:
        return Reading(float(data_D[-1]), "at least", "its loss is below the lowest from scratch")
    if loss > loss_D[0]:
        return Reading(float(data_D[0]), "at most", "its loss is above the highest from scratch")
    log = np.interp(np.log(loss), np.log(loss_D[::-1]), np.log(data_D[::-1]))
    return Reading(float(np.round(np.exp(log), 6)))


def with_transfer(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return results with `effective_data`, `data_transferred` (what of it is not `unique_tokens`), and its bound.

    A run is compared with the runs from scratch of its rung and its seed; where a rung has fewer than two amounts from
    scratch, nothing can be said.
    """
    curves: dict[tuple[int, int], dict[float, float]] = {}
    for one in results.values():
        if one["family"] == SCRATCH and one["target_loss"] is not None:
            curves.setdefault((one["rung"], one["seed"]), {})[one["unique_tokens"]] = one["target_loss"]
    found = {}
    for name, one in results.items():
        curve = curves.get((one["rung"], one["seed"]), {})
        said: dict[str, Any] = {"effective_data": None, "data_transferred": None, "effective_data_bound": None}
        if one["family"] not in (SCRATCH, PRETRAINING) and len(curve) > 1 and one["target_loss"] is not None:
            reading = effective_data(curve, one["target_loss"])
            said = {
                "effective_data": reading.value,
                "data_transferred": reading.value - one["unique_tokens"],
                "effective_data_bound": reading.bound,
            }
        found[name] = {**one, **said}
    return found


def save_points(folder: Path, results: Mapping[str, Mapping[str, Any]], stem: str = "points") -> Rows:
    """Write `<stem>.csv` and `<stem>.parquet`, a row for each run, and return the rows.

    `python -m scripts.fit_scaling data=FOLDER/points.csv` reads them.
    """
    rows = [{"run": name, **one} for name, one in results.items()]
    rows = [{column: row.get(column) for column in COLUMNS} for row in rows]
    files.replace(folder / f"{stem}.csv", _csv(rows, COLUMNS))
    _save_parquet(folder / f"{stem}.parquet", rows)
    return rows


def save_forgetting(folder: Path, text: LadderText, results: Mapping[str, Mapping[str, Any]]) -> Rows:
    """Write `forgetting.csv`, a row for each measurement of each adaptation after its start, and return the rows."""
    rows: Rows = []
    for name, one in results.items():
        if one["family"] in (SCRATCH, PRETRAINING):
            continue
        kept = {key: one[key] for key in COLUMNS if key in one and key not in ("upstream_loss", "steps", "flops")}
        for row in report.read_journal(folder / "runs" / name / "journal.jsonl"):
            if row.step > 0 and f"held_out/{text.upstream[0]}/loss" in row.metrics:
                losses = [row.metrics[f"held_out/{domain}/loss"] for domain in text.upstream]
                rows.append({"run": name, **kept, "step": row.step, "upstream_loss": float(np.mean(losses))})
    columns = [*dict.fromkeys(column for row in rows for column in row)] or ["run"]
    files.replace(folder / "forgetting.csv", _csv(rows, columns))
    return rows


def _csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _save_parquet(path: Path, rows: Rows) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({column: [row[column] for row in rows] for column in COLUMNS}), buffer)
    files.replace(path, buffer.getvalue())
