"""A study's folder: found again after a crash, locked while it is written, never mixed with another config."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adaptlab import config, hosts

__all__ = [
    "StudyError",
    "changes",
    "close_folder",
    "identity",
    "join_job",
    "locked",
    "open_folder",
    "outcome",
    "register_resolver",
    "starts",
    "turn",
    "write_json",
]

_IDENTITY, _LOCK, _STARTS, _DONE = "identity.json", "lock", "starts.json", "done.json"
# What does not change any number: a study may be resumed with other values of these.
_INCIDENTAL = ("wandb", "resume", "out", "hosts")
# What changes their last digits only: a study may be resumed on another mesh, and its passport says so.
_ROUNDING = ("mesh",)


class StudyError(ValueError):
    """A folder that cannot take this study."""


def identity(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a study's config that determines its numbers."""
    return {key: value for key, value in study.items() if key not in _INCIDENTAL}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. The lock goes with the process, however that ends.

    Raises:
      StudyError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(f"{folder} is being written by another process; wait, or choose hydra.run.dir.") from None
        yield


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait until no other process is inside, by a lock on a file."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_folder(folder: Path, study: Mapping[str, Any], surroundings: Mapping[str, Any]) -> list[str]:
    """Claim a folder for a study; if it holds an earlier part of the same study, that is continued.

    Args:
      folder: the study's.
      study: its config.
      surroundings: what else its numbers depend on, see `adaptlab.report.surroundings`.

    Returns:
      What of the surroundings is different since the study was started: its curves may then not be those of an
      uninterrupted run.

    Raises:
      StudyError: it holds a study with another config; names the keys that differ.
    """
    path, mine = folder / _IDENTITY, json.loads(json.dumps(identity(study)))
    if not path.exists():
        write_json(path, mine)
        write_json(folder / _STARTS, [{"time": _now(), "surroundings": surroundings}])
        return []
    there = json.loads(path.read_text())
    if not _same(there, mine):
        differences = "\n".join(f"  {d}" for d in _differences(there, mine))
        raise StudyError(
            f"{folder} holds a study with another config (there -> here):\n{differences}\nChoose another hydra.run.dir."
        )
    if study.get("resume") is False:
        raise StudyError(f"{folder} already holds this study and resume=false; choose another hydra.run.dir.")
    write_json(folder / _STARTS, [*starts(folder), {"time": _now(), "surroundings": surroundings}])
    return changes(folder)


def close_folder(folder: Path, value: Any) -> None:
    """Mark a study as finished, with the value it returned."""
    write_json(folder / _DONE, {"time": _now(), "value": value})


def outcome(folder: Path, study: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `{"time", "value"}` of a folder in which this very study has finished, else None."""
    if not (folder / _DONE).exists() or study.get("resume") is False:
        return None
    same = _same(json.loads((folder / _IDENTITY).read_text()), json.loads(json.dumps(identity(study))))
    return json.loads((folder / _DONE).read_text()) if same else None


def starts(folder: Path) -> list[dict[str, Any]]:
    """Return the starts of the study in a folder, the first and the resumed: `{"time" (ISO 8601), "surroundings"}`."""
    return json.loads((folder / _STARTS).read_text())


def changes(folder: Path) -> list[str]:
    """Return what of the surroundings changed from the first start of a study to any later one."""
    first, *later = (start["surroundings"] for start in starts(folder))
    return list(dict.fromkeys(d for one in later for d in _differences(first, one)))


def join_job(study: Mapping[str, Any]) -> None:
    """Join the other processes of the job that a study's config speaks of (its key `hosts`), if there are any."""
    if node := study.get("hosts"):
        hosts.start(config.instantiate(node))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1))
    os.replace(partial, path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _differences(there: Any, here: Any, path: str = "") -> list[str]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = [*there, *(k for k in here if k not in there)]
        return [d for k in keys for d in _differences(there.get(k), here.get(k), f"{path}.{k}" if path else k)]
    return [] if there == here else [f"{path}: {there!r} -> {here!r}"]


def _same(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether two identities are of one study."""
    one, other = ({k: v for k, v in x.items() if k not in _ROUNDING} for x in (there, here))
    return one == other


def _unfinished(home: Path, study: Mapping[str, Any]) -> Path | None:
    """The newest folder in `home` that a killed process left of this very study."""
    mine = json.loads(json.dumps(identity(study)))
    for path in sorted(home.glob(f"*/{_IDENTITY}"), reverse=True):
        folder = path.parent
        try:
            if not _same(json.loads(path.read_text()), mine) or (folder / _DONE).exists():
                continue
            with locked(folder):
                return folder
        except (StudyError, ValueError):
            continue
    return None


_SCHEMAS: dict[str, Any] = {}  # of the studies of this process, by name: a resolver is one for all


def register_resolver(name: str, schema: Any) -> None:
    """Make `${run_dir:<name>}` known to Hydra: the folder to resume, or a new one named by the time.

    Args:
      name: the study.
      schema: its dataclass, with which its config is completed before it is compared.
    """
    _SCHEMAS[name] = schema

    def resolve(plain: Mapping[str, Any], name: str) -> str:
        home, now = Path("runs") / name, datetime.now()
        study = config.validate(plain, schema=_SCHEMAS[name])
        join_job(study)

        def chosen() -> str:
            found = _unfinished(home, study) if study.get("resume", True) else None
            return str(found or home / now.strftime("%Y-%m-%d_%H-%M-%S"))

        return hosts.agreed(chosen)

    config.register_resolver("run_dir", resolve)
