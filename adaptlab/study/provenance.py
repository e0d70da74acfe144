"""Where a study's numbers come from."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adaptlab import config, report
from adaptlab.study import folder as folders
from adaptlab.study.lab import Lab

__all__ = ["passport"]


def passport(lab: Lab, study: Any, results: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Return the passport of a finished study: base, text, config, code, machine and what was trained.

    Args:
      lab: what its members shared.
      study: the study's dataclass.
      results: of its members, by name.
      folder: the study's.
    """
    started, *resumed = (start["time"] for start in folders.starts(folder))
    return report.passport(
        seeds=study.seeds,
        base=lab.provenance["base"],
        corpora=lab.provenance["corpora"],
        config_hash=config.config_hash(folders.identity(vars(study))),
        deltas={name: result["delta_digest"] for name, result in results.items()},
        started=started,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        resumed=resumed,
        changes=folders.changes(folder),
    )
