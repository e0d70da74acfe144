"""Sinks: where a run's measurements go. The journal on disk is the truth, all others are mirrors.

A journal is a file of JSON lines, one for each write, in the order of writing:

    {"step": 20, "held_out/news/loss": 3.2514, "held_out/news/accuracy": 0.391}

Floats are written as their shortest exact representation (`NaN`, `Infinity` and `-Infinity` included), so
that what is read equals what was written bit by bit.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from adaptlab.report import files

__all__ = ["Row", "Sink", "journal", "null", "read_journal", "tee", "truncate_journal"]


class Sink(NamedTuple):
    """Somewhere to write measurements.

    Attributes:
      write: (step, {metric: value}) -> None. Values are anything `float` reads.
      flush: () -> None; returns once what was written would survive a power cut (where that applies).
      close: () -> None; no writing afterwards. Closing twice is allowed.
    """

    write: Callable[[int, Mapping[str, float]], None]
    flush: Callable[[], None]
    close: Callable[[], None]


class Row(NamedTuple):
    """One line of a journal."""

    step: int
    metrics: dict[str, float]


def null() -> Sink:
    """The sink that keeps nothing."""
    return Sink(write=lambda step, metrics: None, flush=lambda: None, close=lambda: None)


def tee(*sinks: Sink) -> Sink:
    """The sink that passes everything on to each of several, in order."""

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for sink in sinks:
            sink.write(step, metrics)

    def flush() -> None:
        for sink in sinks:
            sink.flush()

    def close() -> None:
        with ExitStack() as stack:  # every sink is closed, even if another one fails to
            for sink in reversed(sinks):
                stack.callback(sink.close)

    return Sink(write, flush, close)


def journal(path: str | os.PathLike) -> Sink:
    """Append to the journal at `path`, which is created, with its folder, if absent.

    Each write is one system call, so a killed process loses at most the line it was writing. Such a torn
    last line is cut off when the journal is opened again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _cut_torn_line(path)
    file = path.open("ab", buffering=0)

    def write(step: int, metrics: Mapping[str, float]) -> None:
        file.write(_line(step, metrics))

    def flush() -> None:
        os.fsync(file.fileno())

    def close() -> None:
        if not file.closed:
            flush()
            file.close()

    return Sink(write, flush, close)


def read_journal(path: str | os.PathLike) -> list[Row]:
    """Read all rows of a journal; a torn last line, left by a killed process, is passed over.

    Raises:
      ValueError: any other line is damaged: the error names it.
      FileNotFoundError: there is no journal.
    """
    lines = Path(path).read_bytes().split(b"\n")
    # Each line ends in a newline, so what follows the last one is empty, or torn.
    return [_row(path, number, line) for number, line in enumerate(lines[:-1], start=1)]


def truncate_journal(path: str | os.PathLike, step: int) -> None:
    """Keep only the rows before `step`, in one atomic replacement: a resumed run measures `step` again.

    Raises:
      FileNotFoundError: `step` is not 0 and there is no journal: the run's past would be lost in silence.
    """
    path = Path(path)
    if step == 0 and not path.exists():
        return
    rows = read_journal(path)
    files.replace(path, b"".join(_line(*row) for row in rows if row.step < step))


def _line(step: int, metrics: Mapping[str, float]) -> bytes:
    if "step" in metrics:
        raise ValueError("A metric cannot be named 'step': the journal keeps the step under that name.")
    row = {"step": int(step), **{name: float(value) for name, value in metrics.items()}}
    return json.dumps(row).encode() + b"\n"


def _row(path: str | os.PathLike, number: int, line: bytes) -> Row:
    try:
        metrics = json.loads(line)
        return Row(metrics.pop("step"), {name: float(value) for name, value in metrics.items()})
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{path}, line {number} is damaged: {line[:80]!r}. Only a last line without its newline can come "
            f"from a killed process; restore the file, or delete the line if the loss of it is acceptable."
        ) from error


def _cut_torn_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end != len(content):
            os.truncate(path, end)
