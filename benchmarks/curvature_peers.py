"""Workers of `benchmarks.curvature`: the peers in PyTorch, and adaptlab in a process that has compiled nothing yet."""

import json
import os
import select
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.mkl import rivals_environment

__all__ = ["OVER", "Ask", "capped", "first_call", "first_call_of"]

OVER = "over the cap"
FIRSTS = 3  # processes whose first calls are timed

Ask = Callable[..., tuple[float, Any]]
"""`(task, **settings) -> (seconds, what was found)`; `OVER` was found where it took longer than the cap."""


def capped(python: str, side: str, options: dict[str, Any], cap: float, stack: ExitStack) -> Ask:
    """A process that does what it is told to, and ends with the stack; one that takes too long is ended and replaced.

    Raises:
      SystemExit: the process does not start, has another number of parameters, or ends at a task.
    """
    path = str(Path(__file__).with_name("torch_curvature.py"))
    running: list[subprocess.Popen[str]] = []
    stack.callback(lambda: [process.kill() for process in running])

    def start() -> subprocess.Popen[str]:
        command = [python, "-W", "ignore", path, json.dumps(options | {"side": side})]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=rivals_environment()
        )
        running.append(process)
        assert process.stdout is not None
        if not (ready := process.stdout.readline()).startswith("ready"):
            raise SystemExit(f"{python} {path} did not start: has it the packages that {side} needs?")
        if int(ready.split()[1]) != options["parameters"]:
            raise SystemExit(f"{side} has {ready.split()[1]} parameters, and adaptlab {options['parameters']}.")
        return process

    def ask(task: str, **settings: Any) -> tuple[float, Any]:
        process = running[-1] if running else start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"task": task, **settings}) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], cap)[0]:
            process.kill()
            running.remove(process)
            return cap, OVER
        if not (line := process.stdout.readline()):
            raise SystemExit(f"{side} stopped at {task}; its own message is above.")
        answer = json.loads(line)
        return answer["seconds"], answer["found"]

    return ask


def first_call(model: str, task: str, settings: dict[str, Any], cache: Path) -> tuple[float, float]:
    """Seconds of adaptlab's first call in a new process: with nothing compiled, and (the median) from the cache."""
    command = [sys.executable, "-m", "benchmarks.curvature", model, "--first", json.dumps([task, settings])]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    seconds = []
    for _ in range(1 + FIRSTS):
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        seconds.append(float(done.stdout.splitlines()[-1]))
    return seconds[0], statistics.median(seconds[1:])


def first_call_of(
    python: str, side: str, options: dict[str, Any], cap: float, task: str, settings: dict[str, Any]
) -> float:
    """Seconds of a peer's first call in a new process, the median of some."""
    seconds = []
    for _ in range(FIRSTS):
        with ExitStack() as stack:
            seconds.append(capped(python, side, options, cap, stack)(task, **settings)[0])
    return statistics.median(seconds)
