"""Checkpoints: asynchronous, atomic, verified on reading. The one door to Orbax.

What a run can compute again (base weights, data order, keys) is not saved: a LoRA checkpoint is megabytes.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import orbax.checkpoint as ocp

from adaptlab import tree
from adaptlab.train.step import TrainState

__all__ = ["CheckpointError", "Checkpoints", "open_checkpoints"]

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """There are checkpoints, and none of them can be read."""


class Checkpoints(NamedTuple):
    """The checkpoints of one run.

    Attributes:
      save: `state -> None`; returns when the arrays are safe to overwrite, writes in the background.
      restore: `abstract state -> state or None`; the newest whole checkpoint, or None where there is none at all.
      close: waits for the last save.
    """

    save: Callable[[TrainState], None]
    restore: Callable[[TrainState], TrainState | None]
    close: Callable[[], None]


def open_checkpoints(folder: str | Path, *, keep: int = 2) -> Checkpoints:
    """Open (or start) the checkpoints of a run.

    Every checkpoint carries the SHA-256 of its arrays. One that cannot be read, or whose arrays differ from their
    digest, is logged, moved to `<folder>/damaged/`, and the one before it is used.

    Args:
      folder: where they live.
      keep: how many to keep; at least 2, so that one can be damaged.

    Raises:
      ValueError: `keep` is below 2.
      CheckpointError: on `restore`, if there are checkpoints and none is whole. A run never starts over silently.
    """
    if keep < 2:
        raise ValueError(f"keep={keep} must be at least 2, so that a damaged checkpoint has one before it.")
    folder = Path(folder).absolute()
    # Trained weights do not compress, and zstd takes ten times as long as writing them.
    state_handler = ocp.PyTreeCheckpointHandler(use_compression=False)
    manager = ocp.CheckpointManager(
        folder / "steps",
        item_handlers={"state": state_handler, "digest": ocp.JsonCheckpointHandler()},
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
    )

    def save(state: TrainState) -> None:
        digest = {"sha256": tree.digest(state._asdict())}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state._asdict()), digest=ocp.args.JsonSave(digest))
        manager.save(int(state.step), args=items)

    def read(step: int, like: TrainState) -> TrainState:
        target = like._asdict()
        items = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)),
            digest=ocp.args.JsonRestore(),
        )
        found = manager.restore(step, args=items)
        state = TrainState(**found["state"])
        if tree.digest(state._asdict()) != found["digest"]["sha256"]:
            raise CheckpointError("its arrays do not have the SHA-256 they were saved with")
        return state

    def restore(like: TrainState) -> TrainState | None:
        steps, damaged = sorted(manager.all_steps(), reverse=True), []
        if not steps and (aside := sorted((folder / "damaged").glob("*"))):
            raise CheckpointError(
                f"All checkpoints of {folder} are damaged and were set aside: {', '.join(map(str, aside))}. "
                f"To start this run over, remove {folder.parent}."
            )
        for step in steps:
            try:
                state = read(step, like)
            except Exception as error:  # whatever a torn file makes Orbax raise
                where = _set_aside(folder, step)
                damaged.append(f"step {step} ({where}): {type(error).__name__}: {str(error).splitlines()[0]}")
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

    return Checkpoints(save, restore, manager.close)


def _set_aside(folder: Path, step: int) -> Path:
    home = folder / "damaged"
    home.mkdir(exist_ok=True)
    target = home / f"{step}-{len(list(home.iterdir()))}"
    os.replace(folder / "steps" / str(step), target)
    return target
