"""Checkpoints: asynchronous, atomic, verified on reading. The one door to Orbax.

What a run can compute again (base weights, data order, keys) is not saved: a LoRA checkpoint is megabytes. In a job of
many processes each writes and reads only the parts its devices hold, and a state comes back on any other mesh and
number of processes: no host ever has all of it.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orbax.checkpoint as ocp

from adaptlab import hosts, tree
from adaptlab.train.checksum import checksum
from adaptlab.train.step import TrainState

__all__ = ["CheckpointError", "Checkpoints", "open_checkpoints"]

log = logging.getLogger(__name__)

_STATE, _DIGEST = "state", "digest"


class CheckpointError(RuntimeError):
    """There are checkpoints, and none of them can be read."""


class Checkpoints(NamedTuple):
    """The checkpoints of one run. In a job of many processes, each call is a meeting of all of them.

    Attributes:
      save: `state -> None`; returns when the arrays are safe to overwrite, writes in the background.
      restore: `like -> state or None`; the newest whole checkpoint, or None where there is none at all. `like` is a
        state, or its shapes with their shardings (`jax.ShapeDtypeStruct`): what is read goes there.
      close: waits for the last save.
      found: whether there is any, whole or not.
    """

    save: Callable[[TrainState], None]
    restore: Callable[[TrainState], TrainState | None]
    close: Callable[[], None]
    found: Callable[[], bool] = lambda: False


def open_checkpoints(folder: str | Path, *, keep: int = 2) -> Checkpoints:
    """Open (or start) the checkpoints of a run.

    Every checkpoint carries the checksum of its arrays. One that cannot be read (by any of the processes), or whose
    arrays differ from their checksum, is logged, moved to `<folder>/damaged/`, and the one before it is used.

    Args:
      folder: where they live: one that all processes of the job see.
      keep: how many to keep; at least 2, so that one can be damaged.

    Raises:
      ValueError: `keep` is below 2.
      CheckpointError: on `restore`, if there are checkpoints and none is whole. A run never starts over silently.
    """
    if keep < 2:
        raise ValueError(f"keep={keep} must be at least 2, so that a damaged checkpoint has one before it.")
    folder = Path(folder).absolute()
    manager = _manager(folder, keep)

    def save(state: TrainState) -> None:
        digest = {"checksum": checksum(state._asdict())}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state._asdict()), digest=ocp.args.JsonSave(digest))
        # Forced: whether it is time to save is not for Orbax to say.
        manager.save(int(state.step), args=items, force=True)

    def restore(like: TrainState) -> TrainState | None:
        manager.wait_until_finished()
        steps, damaged = hosts.agreed(lambda: sorted(manager.all_steps(), reverse=True)), []
        if not steps and (aside := hosts.agreed(lambda: sorted(map(str, (folder / "damaged").glob("*"))))):
            raise CheckpointError(
                f"All checkpoints of {folder} are damaged and were set aside: {', '.join(aside)}. "
                f"To start this run over, remove {folder.parent}."
            )
        for step in steps:
            state, error = _read(folder / "steps" / str(step), like)
            if error is not None:
                where = hosts.agreed(lambda step=step: str(_set_aside(folder, step)))
                damaged.append(f"step {step} ({where}): {error}")
                log.warning("Damaged checkpoint, the one before it is used: %s", damaged[-1])
                continue
            if damaged:
                manager.reload()
            return state
        if damaged:
            raise CheckpointError(
                f"None of the {len(steps)} checkpoints in {folder} can be read:\n  " + "\n  ".join(damaged) + "\n"
                f"To start this run over, remove {folder.parent}."
            )
        return None

    def found() -> bool:
        return hosts.agreed(lambda: bool(manager.all_steps()) or (folder / "damaged").exists())

    return Checkpoints(save, restore, manager.close, found)


def _handler() -> ocp.PyTreeCheckpointHandler:
    # Trained weights do not compress, and zstd takes ten times as long as writing them.
    return ocp.PyTreeCheckpointHandler(use_compression=False)


def _manager(folder: Path, keep: int) -> ocp.CheckpointManager:
    steps, many = folder / "steps", hosts.count() > 1
    hosts.agreed(lambda: steps.mkdir(parents=True, exist_ok=True))
    meetings = ocp.options.MultiprocessingOptions(
        # All of them: Orbax then meets in the coordination service, with a time limit, instead of on the devices.
        active_processes=set(range(hosts.count())) if many else None,
        # Runs that step together save together, in threads of their own.
        barrier_sync_key_prefix=hashlib.sha256(str(folder).encode()).hexdigest()[:16] if many else None,
    )
    manager = ocp.CheckpointManager(
        steps,
        item_handlers={_STATE: _handler(), _DIGEST: ocp.JsonCheckpointHandler()},
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, create=not many, multiprocessing_options=meetings
        ),
    )
    # The loop asks for notices of preemption, once an update; Orbax would too, and count otherwise.
    manager.reached_preemption = lambda step: False
    return manager


def _read(path: Path, like: TrainState) -> tuple[TrainState | None, str | None]:
    """Return the state of a checkpoint, or what is wrong with it: the same on all processes."""
    found = problem = None
    try:
        found = _parts(path, like)
    except Exception as error:  # whatever a torn file makes Orbax raise
        problem = error
    if (failed := hosts.common_outcome(problem)) or found is None:
        return None, f"{type(failed).__name__}: {next(iter(str(failed).splitlines()), '')}"
    state, digest = found
    if "sha256" in digest:  # as the first ones had it
        same = tree.digest(state._asdict()) == digest["sha256"]
    else:
        same = checksum(state._asdict()) == digest["checksum"]
    return (state, None) if same else (None, "its arrays do not have the checksum they were saved with")


def _parts(path: Path, like: TrainState) -> tuple[TrainState, Any]:
    """Read what this process holds of a state, and its digest.

    Not by Orbax's manager, which makes processes that could read their parts wait for one that could not.
    """
    target = like._asdict()
    arguments = ocp.args.PyTreeRestore(target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))
    digest: Any = ocp.JsonCheckpointHandler().restore(path / _DIGEST)  # pyright: ignore[reportArgumentType] (a Path)
    state = _handler().restore(path / _STATE, args=arguments)  # pyright: ignore[reportArgumentType]
    return TrainState(**state), digest


def _set_aside(folder: Path, step: int) -> Path:
    home = folder / "damaged"
    home.mkdir(exist_ok=True)
    target = home / f"{step}-{len(list(home.iterdir()))}"
    os.replace(folder / "steps" / str(step), target)
    return target
