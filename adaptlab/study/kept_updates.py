"""Updates of runs, kept on disk and compared in float64."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptlab import shard
from adaptlab.measure.update import Factors

__all__ = ["apart", "arrays", "dense", "load", "save"]


def arrays(update: Any) -> tuple[np.ndarray, ...]:
    """A matrix as its factors, or as one array, on the host."""
    return tuple(np.asarray(x) for x in shard.fetch(tuple(update) if isinstance(update, Factors) else (update,)))


def dense(update: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    """ΔW in float64: a difference of 1e-7 of it is then not one of rounding here."""
    wide = {path: [x.astype(np.float64) for x in parts] for path, parts in update.items()}
    return {path: x[0] @ x[1] if len(x) == 2 else x[0] for path, x in wide.items()}


def save(path: Path, update: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Write what `arrays` gave of each matrix; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {f"{name}|{i}": x for name, parts in update.items() for i, x in enumerate(parts)}
    with path.with_suffix(".partial").open("wb") as file:
        np.savez(file, allow_pickle=False, **flat)
    path.with_suffix(".partial").replace(path)


def load(path: Path) -> dict[str, np.ndarray]:
    """Read what `save` wrote, as `dense`."""
    found: dict[str, list[np.ndarray]] = {}
    with np.load(path) as file:
        for key in sorted(file.files):
            found.setdefault(key.rpartition("|")[0], []).append(file[key])
    return dense(found)


def apart(mine: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> float:
    """‖ΔW - ΔW_ref‖_F / ‖ΔW_ref‖_F; nan while the reference has not moved."""
    if set(mine) != set(reference):
        raise ValueError(
            f"The arms adapt other matrices: {sorted(set(mine) ^ set(reference))}; they cannot be compared."
        )
    norm = math.sqrt(sum(float(np.sum(np.square(x))) for x in reference.values()))
    distance = math.sqrt(sum(float(np.sum(np.square(mine[path] - x))) for path, x in reference.items()))
    return distance / norm if norm > 0 else math.nan
