"""The header of a GGUF file, read in one pass.

`gguf.GGUFReader` makes several NumPy views for every string and so needs seconds for a vocabulary; the header
alone is a plain sequence of typed values, in the order of the specification
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic "GGUF", version, tensor count, key-value
count, then key, type, value for each pair, then name, dimensions, type and offset for each tensor, then, aligned, the
tensors themselves.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

__all__ = ["Header", "TensorInfo", "load_gguf_header"]

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class TensorInfo(NamedTuple):
    """Where a tensor lies: its shape (slowest axis first), ggml type number, and first byte in the file."""

    shape: tuple[int, ...]
    type: int
    start: int


class Header(NamedTuple):
    """What stands in front of the data."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def load_gguf_header(path: Path) -> Header:
    """Return the header of a little-endian GGUF file (version 2 or 3) as Python values; arrays are lists.

    Raises:
      ValueError: the file is no GGUF file, is of another version, or ends inside the header.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            raise ValueError(f"{path} is no GGUF file: it begins with {magic!r}, not b'GGUF'")
        try:
            version, tensors, pairs = struct.unpack("<IQQ", file.read(20))
            if version not in (2, 3):
                raise ValueError(f"{path} is GGUF version {version}; versions 2 and 3 (little-endian) are read")
            metadata = dict(_pair(file) for _ in range(pairs))
            found = dict(_tensor(file) for _ in range(tensors))
            alignment = metadata.get("general.alignment", 32)
            start = -(-file.tell() // alignment) * alignment
            return Header(metadata, {n: t._replace(start=start + t.start) for n, t in found.items()})
        except (struct.error, EOFError, KeyError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} has a damaged GGUF header near byte {file.tell()}: {error!r}") from error


def _tensor(file: IO[bytes]) -> tuple[str, TensorInfo]:
    name = _string(file)
    (axes,) = _numbers(file, "I", 1)
    shape = _numbers(file, "Q", axes)[::-1]
    return name, TensorInfo(shape, *_numbers(file, "I", 1), *_numbers(file, "Q", 1))


def _pair(file: IO[bytes]) -> tuple[str, Any]:
    key = _string(file)
    return key, _value(file, *_numbers(file, "I", 1))


def _value(file: IO[bytes], kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _numbers(file, _NUMBERS[kind], 1)[0]
    (inner,) = _numbers(file, "I", 1)
    (count,) = _numbers(file, "Q", 1)
    if inner in _NUMBERS:
        return list(_numbers(file, _NUMBERS[inner], count))
    read: Callable[[], Any] = (lambda: _string(file)) if inner == _STRING else (lambda: _value(file, inner))
    return [read() for _ in range(count)]


def _numbers(file: IO[bytes], code: str, count: int) -> tuple[Any, ...]:
    return struct.unpack(f"<{count}{code}", _bytes(file, struct.calcsize(f"<{count}{code}")))


def _string(file: IO[bytes]) -> str:
    return _bytes(file, int.from_bytes(_bytes(file, 8), "little")).decode()


def _bytes(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise EOFError(f"the file ends {count - len(data)} bytes too soon")
    return data
