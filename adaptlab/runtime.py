"""What a process sets up once, before its first JAX computation."""

import atexit
import gc
import logging
import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing import forkserver

from adaptlab.source import cache_dir

__all__ = ["configure", "cpu_devices_given", "expect_crew", "sharers", "split_cpu", "take_cores"]

log = logging.getLogger(__name__)


def configure() -> None:
    """Keep compiled programs between processes, so that the second start of a program does not compile.

    On a CPU, decompositions (LAPACK, by SciPy's OpenBLAS) get one thread each unless `$OPENBLAS_NUM_THREADS` says
    otherwise: matrices here are small and many, and its threads wait for each other by spinning.

    What is there by now, mostly modules, is not looked through for garbage again, which took .1 s a time while programs
    are traced. Nor is anything at the process's end, when the system takes all back: that is most of a second.

    The cache is `$JAX_COMPILATION_CACHE_DIR` if that is set, otherwise a folder beside adaptlab's other cached
    files (`$ADAPTLAB_CACHE`, or the user's cache folder).
    """
    import jax

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # SciPy's is loaded with the first decomposition
    for chatty in ("jax", "absl", "orbax"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs are many
    gc.freeze()
    atexit.unregister(gc.freeze)  # once, however often this is called
    atexit.register(gc.freeze)


def split_cpu(devices: int) -> None:
    """Let JAX see this machine's CPU as several devices; does nothing where it has been said otherwise before.

    It must come before the first computation. Accelerators are not concerned.
    """
    import jax

    if cpu_devices_given():
        return
    setting = "jax_num_cpu_devices"
    if getattr(jax.config, setting) == devices:
        return
    try:
        jax.config.update(setting, devices)
    except RuntimeError:  # too late: JAX has its devices
        log.warning("JAX has been used before the sweep: it stays on %d device(s)", jax.device_count())


def cpu_devices_given() -> bool:
    """Whether the environment says how many devices a CPU is."""
    return "host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ


_SHARERS = [1]


def take_cores(cores: Sequence[int], sharers: int) -> None:
    """Stay on these cores, before the first JAX computation: its threads are as many.

    Args:
      cores: this process's own; where the system knows no such thing, it uses all.
      sharers: how many processes share the machine.
    """
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    _SHARERS[0] = sharers


def sharers() -> int:
    """Return how many processes of the same study share the machine and its memory."""
    return _SHARERS[0]


def expect_crew() -> None:
    """Start importing, in a process beside this one, what the processes of `adaptlab.study.crew` are forks of."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["adaptlab.study.crew"])
    forkserver.ensure_running()
