"""A notice that the machine will be taken away: save at the next update, leave, and be started again.

SIGTERM is what Cloud TPU, Kubernetes and Slurm send; SIGUSR1 and SIGUSR2 are what Slurm sends on request, some time
before the end (`--signal=USR1@90`). A study that has been told leaves with `EXIT_CODE`: its launcher should start the
same command again, which goes on where it was saved.

In a job of many processes a notice to any of them is a notice to all, and JAX's coordination service makes them save
after the same update (`jax.experimental.multihost_utils.reached_preemption_sync_point`).
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

__all__ = ["EXIT_CODE", "SIGNALS", "Preempted", "leave", "notice", "noticed", "noticing"]

EXIT_CODE = 75
"""What a preempted process returns: EX_TEMPFAIL of sysexits.h, "try again later"."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Those that are notices."""

_WORDS = b"\nTold to leave (%s): saving after this update. A second signal ends the process at once.\n"


class Preempted(Exception):
    """The process was told to leave, and what it was doing is saved."""


class _Notice:
    """What a process has been told."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.signal: int | None = None
        self.reached = False
        self.asked = 0
        self.found: dict[int, Any] = {}  # the handlers that were there


_NOTICE = _Notice()


@contextmanager
def noticing() -> Iterator[None]:
    """Inside, the signals are notices instead of the end. Does nothing outside the main thread, or inside itself."""
    if threading.current_thread() is not threading.main_thread() or _NOTICE.found:
        yield
        return
    for number in SIGNALS:
        if number == signal.SIGTERM and _many():  # JAX has a handler of its own, not Python's
            continue
        _NOTICE.found[number] = signal.signal(number, _told)
    try:
        yield
    finally:
        for number, handler in _NOTICE.found.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        _NOTICE.reset()


def _told(number: int, _: Any) -> None:
    """The handler: it only takes a note, for a signal may come at any moment, in the middle of a save too."""
    if _NOTICE.signal is not None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _NOTICE.signal = number
    os.write(2, _WORDS % signal.Signals(number).name.encode())
    if _many():
        os.kill(os.getpid(), signal.SIGTERM)  # which JAX tells the other processes


def notice() -> None:
    """Take note as if a signal had come: for a process that is told in another way."""
    _NOTICE.signal = _NOTICE.signal or signal.SIGTERM


def _many() -> bool:
    jax = sys.modules.get("jax")  # a process that has not imported it is alone
    return jax is not None and jax.distributed.is_initialized()


def noticed() -> bool:
    """Whether to save and leave now. All processes of a job ask equally often, after the same updates."""
    if not _many():
        return _NOTICE.signal is not None
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    _NOTICE.asked += 1
    _NOTICE.reached = _NOTICE.reached or reached_preemption_sync_point(_NOTICE.asked)
    return _NOTICE.reached


def leave() -> NoReturn:
    """End the process with `EXIT_CODE`.

    A handler that was there before ours is called first: a launcher's own, such as submitit's, knows how to requeue.
    """
    handler: Callable[..., Any] | Any = _NOTICE.found.get(_NOTICE.signal or 0)
    if callable(handler) and handler is not signal.default_int_handler:
        handler(_NOTICE.signal, None)
    sys.exit(EXIT_CODE)
