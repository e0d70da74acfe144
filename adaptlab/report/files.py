"""Files that are replaced whole or not at all, and JSON that any reader accepts."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["replace", "save_json", "to_json"]


def replace(path: str | os.PathLike, content: bytes) -> None:
    """Put `content` at `path` atomically: a reader, or a crash, sees the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(value: Any) -> Any:
    """Return `value` as plain JSON types. JSON has no nan and no infinity: both become null.

    NamedTuples become objects, arrays become lists, NumPy scalars numbers, paths strings.

    >>> to_json({"a": float("nan"), "b": (1, 2.5)})
    {'a': None, 'b': [1, 2.5]}
    """
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return to_json(value._asdict())
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON.")


def save_json(path: str | os.PathLike, value: Any) -> None:
    """Write `to_json(value)` to `path` atomically, indented, keys in the order given."""
    text = json.dumps(to_json(value), indent=2, ensure_ascii=False, allow_nan=False)
    replace(path, text.encode() + b"\n")
