"""The passport of a study: everything one would need to know to get the same numbers again."""

import functools
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import adaptlab

__all__ = ["code_version", "passport", "surroundings"]

_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy", "scipy", "tokenizers"),
    *("safetensors", "gguf", "pyarrow", "matplotlib", "hydra-core", "wandb", "torch", "transformers", "peft"),
)
# Variables that can change numbers or the shape of the device mesh.
_VARIABLES = re.compile(
    r"(XLA_|JAX_|LIBTPU_|TPU_|CUDA_VISIBLE_DEVICES|NVIDIA_TF32|TF_CUDNN|TF32_|CUBLAS_|OMP_|MKL_|OPENBLAS_"
    r"|PYTHONHASHSEED).*"
)
# What counts as code among files git does not track (data may lie there too).
_CODE = (":/*.py", ":/*.yaml", ":/*.toml", ":/*.jinja")
_SECRET = re.compile(r".*(KEY|TOKEN|SECRET|PASSWORD).*")
_SWITCHES = (
    *("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl"),
    *("jax_threefry_partitionable", "jax_numpy_dtype_promotion"),
)


def passport(
    *,
    seeds: Sequence[int],
    base: Mapping[str, Any],
    corpora: Mapping[str, Any],
    config_hash: str,
    deltas: Mapping[str, str],
    started: str,
    finished: str,
    resumed: Sequence[str] = (),
    changes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the passport as plain JSON types, in a fixed order of keys.

    Args:
      seeds: of the runs.
      base: the base weights: at least `{"sha256"}`; name, origin, licence are welcome.
      corpora: `{domain: digest, or a mapping with digests}`.
      config_hash: of the resolved config.
      deltas: `{run: digest of its final delta}`, from `adaptlab.tree.digest`.
      started: when the study was first started (ISO 8601).
      finished: when it ended.
      resumed: when it was resumed, each time.
      changes: what of the `surroundings` was different when it was resumed.

    Raises:
      ValueError: `base` does not say its SHA-256.
    """
    if "sha256" not in base:
        raise ValueError(f"The passport needs the base weights' 'sha256'; base has {sorted(base)}.")
    return {
        "adaptlab": adaptlab.__version__,
        "config_hash": config_hash,
        "seeds": list(seeds),
        "base": dict(base),
        "corpora": {name: corpora[name] for name in sorted(corpora)},
        "deltas": {name: deltas[name] for name in sorted(deltas)},
        "times": {"started": started, "finished": finished, "resumed": list(resumed)},
        "changes": list(changes),
        **surroundings(),
    }


def surroundings() -> dict[str, Any]:
    """Return what a study's numbers depend on besides its config: code, packages, device, environment."""
    return {
        "code": _loaded_code(),
        "device": _device(),
        "jax": _switches(),
        "environment": _environment(),
        "packages": _packages(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": {"model": _cpu_model(), "count": os.cpu_count()},
    }


@functools.cache
def _loaded_code() -> dict[str, Any]:
    """The code of this process: what is edited later is not what it runs."""
    return code_version()


def code_version(folder: Path | None = None) -> dict[str, Any]:
    """Return the commit of the checkout that adaptlab runs from, and the hash of what differs from it.

    `{"commit": None, …}` if adaptlab is installed from a wheel, or there is no git.
    """
    folder = Path(__file__).parent if folder is None else folder
    git = functools.partial(_git, folder)
    # A wheel in a virtual environment may lie inside somebody else's checkout; git does not track it there.
    if not git("ls-files", "--", "."):
        return {"commit": None, "dirty": None, "diff_sha256": None}
    commit, root = git("rev-parse", "HEAD"), git("rev-parse", "--show-toplevel")
    diff = git("diff", "HEAD", "--binary") or b""
    others = (git("ls-files", "--others", "--exclude-standard", "--full-name", *_CODE) or b"").splitlines()
    digest = hashlib.sha256(diff)
    for name in sorted(others):
        path = Path(os.fsdecode((root or b"").strip())) / os.fsdecode(name)
        digest.update(b"\0" + name + b"\0" + (path.read_bytes() if path.is_file() else b""))
    dirty = bool(diff or others)
    return {
        "commit": commit.decode().strip() if commit else None,
        "dirty": dirty,
        "diff_sha256": digest.hexdigest() if dirty else None,
    }


def _git(folder: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


@functools.cache
def _packages() -> dict[str, str]:
    found = {}
    for name in sorted(_PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _environment() -> dict[str, str]:
    """The variables that can change numbers, without secrets."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if _VARIABLES.fullmatch(name) and not _SECRET.fullmatch(name)
    }


def _device() -> dict[str, Any]:
    import jax

    devices = jax.devices()
    return {
        "backend": jax.default_backend(),
        "kind": devices[0].device_kind,
        "count": len(devices),
        "processes": jax.process_count(),
    }


def _switches() -> dict[str, Any]:
    import jax

    values = {name: getattr(jax.config, name, None) for name in _SWITCHES}
    return {name: value if isinstance(value, (bool, str)) else str(value) for name, value in values.items()}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
