"""What a process sets up once, before its first JAX computation."""

import logging
import os
from pathlib import Path

import platformdirs

__all__ = ["configure"]


def configure() -> None:
    """Keep compiled programs between processes, so that the second start of a program does not compile.

    The cache is `$JAX_COMPILATION_CACHE_DIR` if that is set, otherwise a folder beside adaptlab's other cached
    files (`$ADAPTLAB_CACHE`, or the user's cache folder).
    """
    import jax

    for chatty in ("jax", "absl", "orbax"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    home = Path(os.environ.get("ADAPTLAB_CACHE") or platformdirs.user_cache_dir("adaptlab"))
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(home / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
