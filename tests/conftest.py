"""What holds for every test. It must run before JAX is imported."""

import os

# Eight devices on any machine, so that sharding is tested everywhere.
_DEVICES = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"

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
