"""Many processes, one study: how they start, agree and part.

Every process runs the same Python over the same global arrays. What they do apart is only this: each has its share of
the data, of the arrays and of the checkpoints, and each has a folder. Process 0 (the *leader*) writes into the study's
own folder; the others work in a private copy of it, taken when they start and thrown away at the end. So any study,
however it keeps its files, reads and decides the same everywhere, and no two processes write one file.

What may differ between hosts (time, memory, caches, clocks) is never branched on before it is `agreed`.
"""

import json
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "HostError",
    "Hosts",
    "agreed",
    "barrier",
    "common_outcome",
    "count",
    "is_leader",
    "mirrored",
    "shared",
    "start",
]

log = logging.getLogger(__name__)

T = TypeVar("T")
_GRACE = 30.0  # seconds that a host which failed waits for the others: if they failed too, they do so about now


class HostError(RuntimeError):
    """Another process of the job failed, or does not answer. What was saved is whole; the same command resumes."""


class Hosts(NamedTuple):
    """How the processes of a job find each other; the config group `hosts`.

    Attributes:
      processes: how many there are; 1 starts nothing, null leaves all three to JAX, which knows Cloud TPU, GKE
        (JobSet), Slurm and Open MPI.
      process: which this one is, from 0.
      coordinator: `address:port` where process 0 listens.
      start_seconds: how long to wait for all processes to come up.
      wait_seconds: how long to wait for a process where all of them meet.
      heartbeat_seconds: after so long without a sign of life a process counts as dead, and the others end.
    """

    processes: int | None = 1
    process: int | None = None
    coordinator: str | None = None
    start_seconds: int = 300
    wait_seconds: int = 1800
    heartbeat_seconds: int = 100


class _Job:
    """What a process knows of its job."""

    def __init__(self) -> None:
        self.wait_seconds, self.met, self.lock = 1800.0, 0, threading.Lock()
        self.mirrors: dict[Path, Path] = {}  # where this process works -> the study's folder

    def meeting(self) -> str:
        """A name that all processes give the same meeting, since all of them meet in one order."""
        with self.lock:
            self.met += 1
            return f"adaptlab/{self.met}"


_JOB = _Job()


class _Alone:
    """The state of a process that has not started JAX."""

    num_processes, process_id, client = 1, 0, None


def _state() -> Any:
    if "jax" not in sys.modules:  # then this process is alone, and need not wait for the import
        return _Alone
    # The coordination service's store has no public name in JAX; Orbax takes this one too.
    from jax._src.distributed import global_state

    return global_state


def count() -> int:
    """The number of processes of the job."""
    return _state().num_processes


def is_leader() -> bool:
    """Whether this process writes what there is once: journals, reports, W&B."""
    return _state().process_id == 0


def start(hosts: Hosts) -> None:
    """Join the job, before the first JAX computation; joining twice does nothing.

    Raises:
      ValueError: some of processes, process and coordinator are given and others are not, or they contradict.
      HostError: the others did not come up in time.
    """
    given = (hosts.processes, hosts.process, hosts.coordinator)
    if hosts.processes == 1 or _state().client is not None:
        return
    import jax

    if None in given and given != (None, None, None):
        raise ValueError(
            f"hosts.processes={given[0]}, hosts.process={given[1]}, hosts.coordinator={given[2]}: give all three, or "
            "hosts=auto where JAX knows the cluster, or hosts=single."
        )
    if hosts.processes is not None and not 0 <= (hosts.process or 0) < hosts.processes:
        raise ValueError(
            f"hosts.process={hosts.process}: choose from 0 to {hosts.processes - 1} (hosts.processes - 1)."
        )
    _JOB.wait_seconds = hosts.wait_seconds
    try:
        jax.distributed.initialize(
            hosts.coordinator,
            hosts.processes,
            hosts.process,
            cluster_detection_method=None if hosts.processes is None else "deactivate",
            initialization_timeout=hosts.start_seconds,
            heartbeat_timeout_seconds=hosts.heartbeat_seconds,
            shutdown_timeout_seconds=int(_GRACE),
        )
    except (RuntimeError, ValueError) as error:
        raise HostError(
            f"process {hosts.process} of {hosts.processes} could not join the job at {hosts.coordinator}: "
            f"{_line(error)}. All processes are started by one command each, within hosts.start_seconds="
            f"{hosts.start_seconds}; hosts=auto needs a cluster that JAX knows."
        ) from error
    log.info("process %d of %d", _state().process_id, count())


def agreed(f: Callable[[], T]) -> T:
    """Return the leader's `f()`, everywhere; the others do not call it. A meeting of all processes.

    Args:
      f: returns what JSON can hold.

    Raises:
      HostError: it raised on the leader (where its own error is raised), or the leader does not answer.
    """
    if count() == 1:
        return f()
    client, name = _state().client, _JOB.meeting()
    if is_leader():
        try:
            value = f()
        except BaseException as error:
            client.key_value_set(name, json.dumps({"error": f"{type(error).__name__}: {_line(error)}"}))
            raise
        client.key_value_set(name, json.dumps({"value": value}))
        return json.loads(json.dumps(value))  # as the others have it
    try:
        told = json.loads(client.blocking_key_value_get(name, int(1000 * _JOB.wait_seconds)))
    except RuntimeError as error:
        raise HostError(f"process 0 did not answer within hosts.wait_seconds={_JOB.wait_seconds:g}.") from error
    if "error" in told:
        raise HostError(f"process 0 failed: {told['error']}")
    return told["value"]


def barrier() -> None:
    """Wait for all processes.

    Raises:
      HostError: one did not come in time.
    """
    _meet(_JOB.wait_seconds)


def _meet(seconds: float) -> None:
    if count() == 1:
        return
    name = _JOB.meeting()
    try:
        _state().client.wait_at_barrier(name, int(1000 * seconds))
    except RuntimeError as error:
        raise HostError(f"not all {count()} processes came within {seconds:g} s: {_line(error)}") from error


def common_outcome(error: Exception | None) -> Exception | None:
    """Agree on how a piece of work ended; None if it went well everywhere. A meeting of all processes.

    Args:
      error: how it failed here, or None.

    Returns:
      The error here, or where it went well here and failed elsewhere, a HostError that says where.

    Raises:
      HostError: it failed here, and the others are still busy with it: they wait for numbers that this process will
        not send, so the job has to end.
    """
    if count() == 1:
        return error
    client, name, mine = _state().client, _JOB.meeting(), _state().process_id
    client.key_value_set(f"{name}/{mine}", "" if error is None else f"{type(error).__name__}: {_line(error)}")
    try:
        _meet(_JOB.wait_seconds if error is None else min(_GRACE, _JOB.wait_seconds))
    except HostError as late:
        raise late from error
    told = {i: client.blocking_key_value_get(f"{name}/{i}", 1000) for i in range(count())}
    failed = [f"process {i}: {text}" for i, text in told.items() if text]
    return error if error is not None or not failed else HostError("; ".join(failed))


@contextmanager
def mirrored(folder: Path, claim: Callable[[], Any] = lambda: None) -> Iterator[Path]:
    """Give every process a folder to work in: the leader `folder` itself, the others a copy as it stands now.

    Checkpoints are not copied, and weights only linked: all processes share those, see `shared`. Inside, the others
    print nothing, and log what is wrong only.

    Args:
      folder: the study's; only the leader's counts. It has to lie where all processes see it.
      claim: is called by the leader before, to hold the folder.

    Raises:
      HostError: another process does not see it, or failed.
    """
    inside = any(folder.absolute().is_relative_to(own) for own in _JOB.mirrors)
    if count() == 1 or inside:  # alone, or a job of a sweep whose folder is mirrored already
        claim()
        yield folder
        return

    def claimed() -> str:
        claim()
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder.absolute())

    study, private, stack = Path(agreed(claimed)), None, ExitStack()
    try:
        if is_leader():
            _JOB.mirrors[study] = study
        else:
            private = Path(tempfile.mkdtemp(prefix=f"adaptlab-{_state().process_id}-"))
            _copy(study, private / study.name)
            _JOB.mirrors[private / study.name] = study
            logging.getLogger().setLevel(logging.WARNING)
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))  # noqa: SIM115
        if failed := common_outcome(None if study.is_dir() else FileNotFoundError(f"{study} is not there")):
            raise HostError(f"{failed}. All processes need to see the study's folder: use a shared file system.")
        yield study if private is None else private / study.name
    finally:
        stack.close()
        _JOB.mirrors.pop(study if private is None else private / study.name, None)
        if private is not None:
            shutil.rmtree(private, ignore_errors=True)


def _copy(study: Path, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    if not study.is_dir():
        return

    def copy(source: str, target: str) -> None:
        if source.endswith(".safetensors"):
            os.symlink(source, target)
        else:
            shutil.copy(source, target)

    skipped = shutil.ignore_patterns("checkpoints", "wandb", "lock", "*.log", "*.partial")
    shutil.copytree(study, to, ignore=skipped, copy_function=copy, dirs_exist_ok=True)


def shared(path: Path) -> Path:
    """Return the place in the study's folder that one in a private copy of it stands for; other paths as they are."""
    for private, study in _JOB.mirrors.items():
        if path.is_relative_to(private):
            return study / path.relative_to(private)
    return path


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
