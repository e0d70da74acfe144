"""Mirror a run to Weights & Biases, which can be slow, absent or broken without the run noticing.

Everything W&B does, its import included, happens in a daemon thread behind a bounded queue. The first
failure is logged as a warning; what could not be mirrored is on disk all the same. Runs are offline unless
the user is logged in: `wandb sync <dir>/wandb/offline-run-*` uploads them later.
"""

import logging
import os
import queue
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adaptlab import hosts
from adaptlab.report import files
from adaptlab.report.sink import Sink, null

__all__ = ["offline_record", "public_api", "wandb_sink"]

_MODES = ("auto", "online", "offline", "disabled")
_LOG = logging.getLogger(__name__)


class _Mirror(NamedTuple):
    """What the training thread and the W&B thread share."""

    rows: queue.SimpleQueue  # (step, metrics), or None at the end
    ended: threading.Event
    warn: Callable[[str], None]  # speaks once


def wandb_sink(
    project: str,
    *,
    name: str,
    group: str,
    config: Mapping[str, Any],
    dir: str | os.PathLike,
    mode: str = "auto",
    tags: Sequence[str] = (),
    timeout: float = 10.0,
    capacity: int = 10_000,
) -> Sink:
    """Return a sink that mirrors a run to W&B, and that neither raises nor waits when it writes.

    A run that is resumed from the same `dir` continues the same W&B run: its id is kept in `dir/wandb_id`.
    Metrics are plotted against their own axis "step", since a resumed run measures some steps again and
    W&B's built-in step may only grow.

    Args:
      project: the W&B project.
      name: the run's name.
      group: what ties the runs of one study together.
      config: the run's settings.
      dir: the run's directory; W&B's files go to `dir/wandb`.
      mode: "online", "offline", "disabled", or "auto": the environment's WANDB_MODE if set, otherwise
        online if the user is logged in and offline if not. In a job of many processes only the leader mirrors.
      tags: labels to filter by.
      timeout: for how many seconds at most `close` waits for W&B.
      capacity: how many rows may wait for W&B before more are dropped (from the mirror).

    Raises:
      ValueError: `mode` is none of these.
    """
    if mode not in _MODES:
        raise ValueError(f"W&B mode {mode!r} is not one of {', '.join(_MODES)}.")
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "auto")
    if mode == "disabled" or not hosts.is_leader():
        return null()
    settings = {"project": project, "name": name, "group": group, "config": config, "tags": tags}
    mirror = _Mirror(queue.SimpleQueue(), threading.Event(), _warn_once(name))
    work = threading.Thread(
        target=_work, args=(mirror, settings, Path(dir), mode, timeout), name=f"wandb {name}", daemon=True
    )
    work.start()
    return _feed(mirror, timeout, capacity)


def public_api() -> Any:
    """Return W&B's client of what was logged online."""
    import wandb

    return wandb.Api()


def offline_record(content: bytes) -> Any:
    """Return a record of an offline run's file as W&B's message."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]  # made at run time

    return Record.FromString(content)


def _feed(mirror: _Mirror, timeout: float, capacity: int) -> Sink:
    """The training thread's side."""
    closed = threading.Event()

    def write(step: int, metrics: Mapping[str, float]) -> None:
        if mirror.ended.is_set() or closed.is_set():
            return
        if mirror.rows.qsize() >= capacity:
            return mirror.warn(f"is not keeping up: {capacity} rows wait, later ones are dropped")
        mirror.rows.put((int(step), {key: float(value) for key, value in metrics.items()}))

    def close() -> None:
        if closed.is_set():
            return
        closed.set()
        mirror.rows.put(None)
        if not mirror.ended.wait(timeout):
            mirror.warn(f"has not finished within {timeout:g} s, and is left behind")

    return Sink(write, lambda: None, close)


def _work(mirror: _Mirror, settings: dict[str, Any], dir: Path, mode: str, timeout: float) -> None:
    """W&B's side, in its own thread."""
    try:
        run = _start(mirror, settings, dir, mode, timeout)
        while (row := mirror.rows.get()) is not None:
            step, metrics = row
            run.log({"step": step, **metrics})
        run.finish()
    except Exception as error:  # whatever it is, the run itself goes on
        mirror.warn(f"failed with {type(error).__name__}: {error}")
    finally:
        mirror.ended.set()


def _start(mirror: _Mirror, settings: dict[str, Any], dir: Path, mode: str, timeout: float) -> Any:
    if mode == "auto":
        mode = "online" if _logged_in() else "offline"
    try:
        return _init(settings, dir, mode, timeout)
    except Exception as error:
        if mode == "offline":
            raise
        mirror.warn(f"cannot be reached and is recorded offline ({type(error).__name__}: {error})")
        return _init(settings, dir, "offline", timeout)


def _init(settings: dict[str, Any], dir: Path, mode: str, timeout: float) -> Any:
    import wandb

    dir.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        **settings | {"config": files.to_json(settings["config"]), "tags": list(settings["tags"])},
        dir=str(dir),
        id=_run_id(dir),
        resume="allow",
        mode=mode,  # pyright: ignore[reportArgumentType]
        reinit="create_new",  # the members of a sweep run side by side in one process
        settings=wandb.Settings(silent=True, console="off", init_timeout=60, finish_timeout=timeout),
    )
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    return run


def _run_id(dir: Path) -> str:
    """The W&B id of the run in `dir`: drawn once, then kept there, so a moved directory keeps it."""
    path = dir / "wandb_id"
    if not path.exists():
        files.replace(path, uuid.uuid4().hex[:16].encode())
    return path.read_text()


def _logged_in() -> bool:
    """Whether W&B would find credentials without asking: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    try:  # not public: only W&B knows which of its hosts share an account
        from wandb.sdk.lib.wbauth import read_netrc_auth
    except ImportError:
        return False
    return read_netrc_auth(host=wandb.setup().settings.base_url) is not None


def _warn_once(name: str) -> Callable[[str], None]:
    spoken = threading.Event()

    def warn(message: str) -> None:
        if not spoken.is_set():
            spoken.set()
            _LOG.warning("W&B run %r %s. The measurements on disk are not affected.", name, message)

    return warn
