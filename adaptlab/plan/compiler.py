"""Compiling jobs in processes of their own: once each, however often they are asked for."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptlab.config import config_hash
from adaptlab.plan.collectives import Collective
from adaptlab.plan.job import Job
from adaptlab.plan.topology import parse_topology

__all__ = ["Facts", "choose_backend", "make_compiler"]

Facts = dict[str, Any]
"""What `adaptlab.plan.worker.measure` returns."""

_TPU = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}


def choose_backend(asked: str) -> str:
    """Return "tpu", if libtpu is installed, or "cpu".

    Raises:
      ValueError: another word, or "tpu" where it is not.
    """
    if asked not in ("auto", "cpu", "tpu"):
        raise ValueError(f"backend={asked!r} is not one of ['auto', 'cpu', 'tpu'].")
    there = importlib.util.find_spec("libtpu") is not None
    if asked == "tpu" and not there:
        raise ValueError("backend='tpu': libtpu is not installed; pip install 'adaptlab[tpu]', or choose backend=cpu.")
    return "tpu" if there and asked != "cpu" else "cpu"


def make_compiler(
    backend: str, *, said: Callable[[str], None] = lambda text: None, timeout: float = 3600.0
) -> Callable[[Job], Facts]:
    """Return `job -> facts`, which remembers what it has compiled.

    Args:
      backend: "tpu" or "cpu".
      said: is told what is being compiled.
      timeout: seconds for one.
    """
    known: dict[str, Facts] = {}

    def compiled(job: Job) -> Facts:
        key = config_hash(job._asdict())
        if key not in known:
            said(f"compiling for {job.topology}{f' x {job.slices}' if job.slices > 1 else ''} …")
            known[key] = _run(job, backend, timeout)
        return known[key]

    return compiled


def _run(job: Job, backend: str, timeout: float) -> Facts:
    """Compile in a new process.

    Raises:
      ValueError: what the job gets wrong; or the compiler died, with the end of what it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, answer, log = (Path(folder) / name for name in ("request.json", "answer.json", "log.txt"))
        request.write_text(json.dumps({"job": job._asdict(), "backend": backend}))
        command = [sys.executable, "-m", "adaptlab.plan.worker", str(request), str(answer)]
        with log.open("w") as stream:
            try:
                done = subprocess.run(
                    command,
                    env=_environment(job, backend),
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    timeout=timeout,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise ValueError(f"compiling took more than {timeout:.0f} s.") from error
        if done.returncode or not answer.exists():
            raise ValueError(_died(done.returncode, log.read_text(errors="replace")))
        facts = json.loads(answer.read_text())
    if "error" in facts:
        raise ValueError(facts["error"])
    facts["collectives"] = [
        Collective(**{**one, "axes": tuple(one["axes"]), "group": tuple(one["group"]), "shapes": tuple(one["shapes"])})
        for one in facts["collectives"]
    ]
    facts["coordinates"] = [tuple(place) for place in facts["coordinates"]]
    return facts


def _environment(job: Job, backend: str) -> dict[str, str]:
    """No real device is touched: the host's CPU traces, and libtpu, if it is there, only describes and compiles."""
    root = str(Path(__file__).parents[2])
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),
    }
    if backend == "tpu":
        environment |= _TPU
    else:
        chips = parse_topology(job.topology, job.slices).chips
        flags += f" --xla_force_host_platform_device_count={chips}"
    return {**environment, "XLA_FLAGS": flags.strip()}


def _died(code: int, log: str) -> str:
    errors = [line for line in log.splitlines() if re.search(r"Error|SIG|error:", line)]
    last = " | ".join(line.strip()[:300] for line in errors[-3:]) or log[-500:]
    why = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"the compiler's process {why}: {last}"
