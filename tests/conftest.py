"""What holds for every test. It must run before JAX is imported."""

import itertools
import os

_XLA = [
    # Eight devices on any machine, so that sharding is tested everywhere.
    "--xla_force_host_platform_device_count=8",
    # Tests compile much and compute little: without these passes they compile ten times as fast. What is claimed here
    # is mathematics and holds under any of them. Whole studies run in processes of their own, without these flags.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
]
os.environ["XLA_FLAGS"] = " ".join(
    [*_XLA, os.environ.get("XLA_FLAGS", "")]
).strip()  # the user's own have the last word
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads wait for each other by spinning

import jax
from hypothesis import settings
from jaxtyping import install_import_hook

# Silent conversions hide mistakes: int32 with float32, or [T] with [B, T], is an error while tests run.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Annotations are checked in every room that handles arrays, shapes included; an int may stand for a float (PEP 484).
# The hook must be there before the rooms are imported. Tables and figures take NumPy scalars as numbers, which
# beartype does not, so `stats`, `report` and `study` are left to pyright.
_ROOMS = "adapt config data flops gguf leaf measure models optim rng shard source train tree"
install_import_hook(
    [f"adaptlab.{room}" for room in _ROOMS.split()],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# A busy machine is not a bug: examples have no time limit of their own.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_configure(config):
    if not config.option.markexpr:  # `-m` on the command line says otherwise
        config.option.markexpr = "not slow and not reference"


_finished = itertools.count(1)


def pytest_runtest_logfinish():
    # Every program that was compiled stays in memory otherwise: 13 MB a test in the mean.
    if next(_finished) % 200 == 0:
        jax.clear_caches()
