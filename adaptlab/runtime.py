"""What a process sets up once, before its first JAX computation."""

import logging
import os

from adaptlab.source import cache_dir

__all__ = ["configure", "split_cpu"]

log = logging.getLogger(__name__)


def configure() -> None:
    """Keep compiled programs between processes, so that the second start of a program does not compile.

    On a CPU, decompositions (LAPACK, by SciPy's OpenBLAS) get one thread each unless `$OPENBLAS_NUM_THREADS` says
    otherwise: matrices here are small and many, and its threads wait for each other by spinning.

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


def split_cpu(devices: int) -> None:
    """Let JAX see this machine's CPU as several devices; does nothing where it has been said otherwise before.

    It must come before the first computation. Accelerators are not concerned.
    """
    import jax

    if "host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    setting = "jax_num_cpu_devices"
    if getattr(jax.config, setting) == devices:
        return
    try:
        jax.config.update(setting, devices)
    except RuntimeError:  # too late: JAX has its devices
        log.warning("JAX has been used before the sweep: it stays on %d device(s)", jax.device_count())
