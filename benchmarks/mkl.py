"""torch at its best on a processor that Intel has not made.

The MKL inside torch asks for the processor's maker, and on an AMD EPYC with AVX-512 it then takes kernels that are half
as fast (107 of 246 GFLOP/s on a core, torch 2.13, float32). A library that is loaded before it and answers for an Intel
gives it the others. A rival is measured at its best, so every process of torch is started with it.
"""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["rivals_environment"]

_ANSWER = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"


@functools.cache
def rivals_environment() -> dict[str, str]:
    """The environment for a process of torch: this one's, and where it helps, the library."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or "AuthenticAMD" not in cpu.read_text():
        return dict(os.environ)
    if (compiler := shutil.which("cc")) is None:
        print("No C compiler: torch's MKL runs at the speed it has by itself on this AMD.", file=sys.stderr)
        return dict(os.environ)
    folder = tempfile.mkdtemp(prefix="adaptlab-mkl-")
    atexit.register(shutil.rmtree, folder)
    library = Path(folder) / "answer.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)], input=_ANSWER.encode(), check=True
    )
    return os.environ | {"LD_PRELOAD": str(library)}
