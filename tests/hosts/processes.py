"""Real processes of one job, on this machine: each is started as a user would, and they talk through gloo."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEVICES = 4  # of all processes together


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environment(cache: Path, processes: int) -> dict[str, str]:
    """Each process has an equal share of the devices; all of them share what is compiled."""
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    return kept | {
        "ADAPTLAB_CACHE": str(cache),
        "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),
        "JAX_NUM_CPU_DEVICES": str(DEVICES // processes),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }


def start(command: Sequence[str], processes: int, cwd: Path, cache: Path) -> list[subprocess.Popen[str]]:
    """Start `python -m <command>` as the processes of one job; what they print goes to `cwd/<process>.txt`."""
    cwd.mkdir(parents=True, exist_ok=True)
    port, started = free_port(), []
    for process in range(processes):
        job = [f"hosts.processes={processes}", f"hosts.process={process}", f"hosts.coordinator=127.0.0.1:{port}"]
        job = [*job, "hosts.heartbeat_seconds=10"] if processes > 1 else []
        with (cwd / f"{process}.txt").open("w") as out:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", *command, *job],
                    cwd=cwd,
                    env=environment(cache, processes),
                    text=True,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            )
    return started


def said(cwd: Path) -> str:
    """What the processes have printed, for a test that fails."""
    return "\n".join(f"--- {path.stem}\n{path.read_text()[-4000:]}" for path in sorted(cwd.glob("?.txt")))


def ended(started: Sequence[subprocess.Popen[str]], seconds: float = 600) -> list[int]:
    """Wait for all processes, and return their exit codes; those that do not end in time are killed."""
    until = time.monotonic() + seconds
    try:
        return [one.wait(max(0.1, until - time.monotonic())) for one in started]
    finally:
        for one in started:
            if one.poll() is None:
                one.kill()
