"""Predictions that are sealed before what they predict is run, and scored after.

The order is kept by files. `predictions.json` is written whole; its SHA-256 stands in `predictions.sha256`, in each run
of the largest rung, before the first line of that run's journal, and in the passport. Without a sealed prediction the
largest rung does not start, and with a changed one the study does not go on.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from adaptlab.report import files
from adaptlab.study.folder import StudyError
from adaptlab.study.ladder.laws import Law, Rows, fit_laws, predicted
from adaptlab.study.ladder.plan import LadderPlan

__all__ = ["make_predictions", "score", "seal"]

PREDICTIONS, DIGEST, RECORD = "predictions.json", "predictions.sha256", "prediction.json"


def make_predictions(
    laws: Mapping[str, Law], plan: LadderPlan, rows: Rows, points: Path, *, level: float, draws: int
) -> dict[str, Any]:
    """Return what the laws of the smaller rungs say of each cell of the largest, which has not been run.

    What has no finite interval is no prediction: it stands under "without_interval", and is not scored.

    Args:
      laws: those that predict are fitted to `rows`.
      plan: has the largest rung's cells.
      rows: of the smaller rungs.
      points: the file they stand in.
      level: the probability that a run lies within its interval.
      draws: of the laws' bootstrap.
    """
    largest, said, silent = plan.ladder.largest, [], []
    fitted = fit_laws({n: one for n, one in laws.items() if one.predicts}, rows, [], level=level, draws=draws)
    for name, one in fitted.items():
        for cell in plan.cells(largest) if one.fit is not None else ():
            about = cell.about(largest)
            if all(_holds(about.get(key), wanted) for key, wanted in one.law.where.items()):
                inputs = {key: float(about[column]) for key, column in one.law.x.items()}
                expected = predicted(one, inputs, level)
                bounded = all(np.isfinite(value) and value > 0 for value in expected.values())
                row = {"law": name, "cell": cell.name, "y": one.law.y, "inputs": inputs, **expected}
                (said if bounded else silent).append(row)
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "of": largest.name,
        "level": level,
        "points": points.name,
        "points_sha256": hashlib.sha256(points.read_bytes()).hexdigest(),
        "laws": {name: one.table for name, one in fitted.items()},
        "predictions": said,
        "without_interval": silent,
    }


def seal(folder: Path, homes: Iterable[Path], make: Callable[[], Mapping[str, Any]]) -> str:
    """Write the predictions, unless they have been written before, seal them, and return their SHA-256.

    Each predicted run's folder gets the seal in `prediction.json`.

    Args:
      folder: the study's.
      homes: the folders of the runs that are predicted.
      make: makes the predictions.

    Raises:
      StudyError: a predicted run has begun without them, or they are not those that were sealed.
    """
    path, homes = folder / PREDICTIONS, [*homes]
    if path.exists() and (folder / DIGEST).exists():
        return _record(homes, _verified(folder, homes))
    if begun := [home for home in homes if (home / "journal.jsonl").exists()]:
        raise StudyError(
            f"{begun[0]} has begun, but {folder} has no sealed {PREDICTIONS}: what is known already cannot be "
            "predicted. Start another study (resume=false)."
        )
    files.save_json(path, make())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    files.replace(folder / DIGEST, f"{digest}\n".encode())
    return _record(homes, digest)


def _record(homes: Iterable[Path], digest: str) -> str:
    """Write the seal into each predicted run's folder that has none, and return it."""
    for home in homes:
        if not (home / RECORD).exists():
            said = {"sha256": digest, "recorded": datetime.now(UTC).isoformat(timespec="seconds")}
            files.save_json(home / RECORD, said)
    return digest


def _verified(folder: Path, homes: Sequence[Path]) -> str:
    digest = hashlib.sha256((folder / PREDICTIONS).read_bytes()).hexdigest()
    sealed = {folder / DIGEST: (folder / DIGEST).read_text().strip()}
    records = [home / RECORD for home in homes if (home / RECORD).exists()]
    sealed |= {path: json.loads(path.read_text())["sha256"] for path in records}
    for path, said in sealed.items():
        if said != digest:
            raise StudyError(
                f"{folder / PREDICTIONS} has SHA-256 {digest}, but {path} says {said}: it was changed after it was "
                "sealed. Put the sealed file back, or start another study (resume=false)."
            )
    if begun := [h for h in homes if (h / "journal.jsonl").exists() and not (h / RECORD).exists()]:
        raise StudyError(f"{begun[0]} has begun without the seal of {PREDICTIONS}; start another study (resume=false).")
    return digest


def score(folder: Path, digest: str, results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each prediction with what was measured: the mean over seeds, its relative error, and who is inside.

        error = |mean / value - 1|,   room = 1 - |log(y / value)| / |log(limit / value)|

    with the limit on the side of y: a run lies inside its interval where its room is not negative.

    Args:
      folder: the study's.
      digest: the seal.
      results: of the runs.

    Raises:
      StudyError: the predictions are not those that were sealed.
    """
    largest = [folder / "runs" / name for name, one in results.items() if one["split"] == "largest"]
    if _verified(folder, largest) != digest:
        raise StudyError(f"{folder / PREDICTIONS} has been sealed again while the largest rung was running.")
    said, scored = json.loads((folder / PREDICTIONS).read_text()), []
    for row in said["predictions"]:
        runs = {name: one for name, one in results.items() if one["method"] == row["cell"]}
        measured = {name: one[row["y"]] for name, one in runs.items() if one[row["y"]] is not None}
        if not measured:
            continue
        mean = float(np.mean([*measured.values()]))
        rooms = {name: _room(row, y) for name, y in measured.items()}
        scored.append(
            {
                **row,
                "runs": measured,
                "mean": mean,
                "room": rooms,
                "inside": row["low"] <= mean <= row["high"],
                "runs_inside": sum(room >= 0 for room in rooms.values()),
                "relative_error": abs(mean / row["value"] - 1),
            }
        )
    return scored


def _room(row: Mapping[str, Any], y: float) -> float:
    value = np.log(row["value"])
    limit = abs(np.log(row["high" if np.log(y) > value else "low"]) - value)
    return float(1 - abs(np.log(y) - value) / limit) if limit > 0 else float("-inf")


def _holds(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list | tuple) else value == wanted
