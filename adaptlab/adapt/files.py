"""Saved deltas: what was trained and nothing else, in one safetensors file that says what it belongs to."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaptlab import tree

__all__ = ["SavedDelta", "load_delta", "save_delta"]

_KEY = "adaptlab.delta"


class SavedDelta(NamedTuple):
    """A delta from disk.

    Attributes:
      delta: the nested dict of NumPy arrays.
      adapt: the config of the adaptation it belongs to, a call tree.
      base: the SHA-256 of the base's weights.
      digest: the delta's own digest (`tree.digest`), checked on loading.
    """

    delta: Any
    adapt: dict[str, Any]
    base: str
    digest: str


def save_delta(path: str | Path, delta: Any, *, adapt: dict[str, Any], base: str) -> str:
    """Write a delta atomically and return its digest.

    Args:
      path: the file, `*.safetensors`.
      delta: a nested dict of arrays.
      adapt: the config of the adaptation, so that `load_delta`'s reader can bind it.
      base: the SHA-256 of the base's weights, so that it is never bound to another base.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(x) for name, x in tree.flatten(delta).items()}
    digest = tree.digest(delta)
    header = json.dumps({"adapt": adapt, "base": base, "digest": digest})
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(arrays, partial, {_KEY: header})
    os.replace(partial, path)
    return digest


def load_delta(path: str | Path, *, base: str | None = None) -> SavedDelta:
    """Read what `save_delta` wrote.

    Args:
      path: the file.
      base: the SHA-256 of the weights it will be bound to; None skips the check.

    Raises:
      ValueError: not a delta, damaged, or trained on another base.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no delta at {path}.")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if _KEY not in metadata:
        raise ValueError(f"{path} is a safetensors file, but not a delta that save_delta wrote.")
    saved = SavedDelta(tree.unflatten(flat), **json.loads(metadata[_KEY]))
    if tree.digest(saved.delta) != saved.digest:
        raise ValueError(f"{path} is damaged: its arrays do not have the digest in its header.")
    if base is not None and saved.base != base:
        raise ValueError(f"{path} was trained on the base with SHA-256 {saved.base}, not on {base}; choose that base.")
    return saved
