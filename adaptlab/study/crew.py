"""A CPU's cores as processes: each runs its share of a sweep's members on cores of its own.

Small runs share two cores badly inside one process: their programs wait for each other in one pool of threads, and
whatever Python does (saving, writing, logging) lets every core wait. Here each process has its own base and its own
copy of the program, takes its runs in turn, or batched where a trial says that this is faster, and writes into their
folders itself. What a run comes to does not depend on the process that ran it.
"""

import logging
import logging.handlers
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from adaptlab import preempt, runtime
from adaptlab.study.devices import cores
from adaptlab.study.folder import StudyError
from adaptlab.study.halving import Halving
from adaptlab.study.lab import Lab, load_lab
from adaptlab.study.programs import share
from adaptlab.study.run import Runner, Task, run_rounds
from adaptlab.study.settings import Replication
from adaptlab.study.text import Text
from adaptlab.study.trials import decide

__all__ = ["Crew", "crew"]

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2  # how soon a notice to leave is passed on


class Crew:
    """Processes that wait for work; see `crew`."""

    def __init__(self, pools: Sequence[ProcessPoolExecutor], pipes: Sequence[Connection]) -> None:
        self._pools, self._pipes = pools, pipes
        self._opening: list[Future[None]] = []

    def open(self, settings: Mapping[str, Any]) -> None:
        """Let every process open a base, see `load_lab`, and wait for its text; returns at once."""
        self._opening = [pool.submit(_open, settings) for pool in self._pools]

    def give(self, text: Text) -> None:
        """Let every process have the text it waits for: to read it once is enough."""
        self._tell(text)

    def run(
        self,
        lab: Lab,
        tasks: Sequence[Task],
        folder: Path,
        replication: Replication,
        halving: Halving | None = None,
        meanwhile: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run what has not finished, spread over the processes, in the lab that was opened last.

        Args:
          lab: the same lab as it is here; its weights are only asked for if a halving compares gains over the base.
          tasks: the runs.
          folder: see `run_tasks`, and so are `replication` and `halving`.
          meanwhile: is called again and again while they run; says whether it did something.

        Raises:
          StudyError: runs failed, after all others were given their chance; or a process died.
          Preempted: this process was told to leave, and the states of all runs are saved.
        """
        # Of all, finished or not, and not of a process's own: all of them, and a resumed sweep, decide the same.
        runs = Counter(task.member.program for task in tasks)
        most = {program: -(-count // len(self._pools)) for program, count in runs.items()}
        self._opening += [pool.submit(_prepare, folder, replication, most) for pool in self._pools]
        run_rounds(lab, tasks, halving, lambda *part: self._run(*part, meanwhile=meanwhile))

    def _run(self, tasks: Sequence[Task], until: int | None, final: bool, meanwhile: Callable[[], bool]) -> None:
        due = [task for task in tasks if not task.finished]
        if not due:
            return
        shares = [due[i :: len(self._pools)] for i in range(len(self._pools))]
        log.info("%d processes on cores of their own take %s runs", len(shares), ", ".join(str(len(s)) for s in shares))
        futures = [pool.submit(_run, share, until, final) for pool, share in zip(self._pools, shares, strict=True)]
        self._wait(futures, meanwhile)
        errors = [error for future in (*self._opening, *futures) if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, StudyError | BrokenProcessPool):
                raise error
        died = "A process died (out of memory?); the same command goes on from there"
        if errors:
            raise StudyError(
                "\n".join(dict.fromkeys(str(e) if isinstance(e, StudyError) else died for e in errors))
            ) from errors[0]

    def _wait(self, futures: Sequence[Future[None]], meanwhile: Callable[[], bool]) -> None:
        ended = threading.Event()

        def pass_on() -> None:  # in a thread of its own: what is done meanwhile may take long
            while not ended.wait(_POLL_SECONDS):
                if preempt.noticed():
                    self._tell("leave")
                    return

        with ThreadPoolExecutor(1) as pool:
            pool.submit(pass_on)
            try:
                busy = False
                while wait(futures, timeout=0.0 if busy else _POLL_SECONDS).not_done:
                    busy = not preempt.noticed() and meanwhile()
            finally:
                ended.set()

    def _tell(self, what: Text | Literal["leave"]) -> None:
        for pipe in self._pipes:
            with suppress(OSError):  # one that has died
                pipe.send(what)


@contextmanager
def crew(size: int) -> Iterator[Crew]:
    """Start processes, each with an equal part of this one's cores; they end with this one, however that ends.

    Args:
      size: how many; if there are more of them than cores, some share one.
    """
    context = multiprocessing.get_context("forkserver")
    records = context.Queue()
    listener = logging.handlers.QueueListener(records, *logging.getLogger().handlers)
    mine = sorted(cores())
    parts = [mine[index::size] or [mine[index % len(mine)]] for index in range(size)]
    with ExitStack() as stack:
        listener.start()
        stack.callback(listener.stop)
        pools, pipes = [], []
        for index, part in enumerate(parts):
            theirs, ours = context.Pipe(duplex=False)
            pipes.append(stack.enter_context(ours))
            start = (theirs, records, part, size, index == 0)
            pool = ProcessPoolExecutor(1, mp_context=context, initializer=_start, initargs=start)
            stack.callback(pool.shutdown, cancel_futures=True)
            pools.append(pool)
        try:
            yield Crew(pools, pipes)
        except BaseException:
            for pipe in pipes:  # which ends the processes, whatever they do
                pipe.close()
            raise


def _start(told: Connection, records: Any, mine: Sequence[int], of: int, first: bool) -> None:
    """What a process does before its first work."""
    for number in preempt.SIGNALS:  # which the process that started it passes on
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_listen, args=(told,), daemon=True).start()
    root = logging.getLogger()
    root.handlers[:] = [logging.handlers.QueueHandler(records)]
    root.setLevel(logging.WARNING)
    logging.getLogger(decide.__module__).setLevel(logging.INFO)  # only one of them decides
    if first:  # speaks for all of what they share
        logging.getLogger(share.__module__).setLevel(logging.INFO)
    runtime.take_cores(mine, of)
    runtime.configure()


def _listen(told: Connection) -> None:
    """Take text, and leave when told to; end at once when the process that started this one has ended."""
    try:
        while True:
            if (what := told.recv()) == "leave":
                preempt.notice()
            else:
                _TEXTS.put(what)
    except EOFError:
        sys.stdout.flush()
        os._exit(1)


_TEXTS: queue.Queue[Text] = queue.Queue()
_OPENED: list[Lab] = []
_RUNNER: list[Runner] = []


def _open(settings: Mapping[str, Any]) -> None:
    _RUNNER.clear()
    _OPENED.clear()
    _OPENED.append(load_lab(settings, _TEXTS.get))


def _prepare(folder: Path, replication: Replication, counts: Mapping[str, int]) -> None:
    _RUNNER[:] = [Runner(_OPENED[0], folder, replication, counts)]


def _run(tasks: Sequence[Task], until: int | None, final: bool) -> None:
    _RUNNER[0](tasks, until, final)
