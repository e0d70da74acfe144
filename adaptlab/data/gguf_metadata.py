"""The key-value header of a GGUF file, read in one pass.

`gguf.GGUFReader` makes several NumPy views for every string and so needs seconds for a vocabulary; the header
alone is a plain sequence of typed values, in the order of the specification
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic "GGUF", version, tensor count, key-value
count, then key, type, value for each pair.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

__all__ = ["load_gguf_metadata"]

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def load_gguf_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a little-endian GGUF file (version 2 or 3) as Python values; arrays are lists.

    Raises:
      ValueError: the file is no GGUF file, is of another version, or ends inside the header.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            raise ValueError(f"{path} is no GGUF file: it begins with {magic!r}, not b'GGUF'")
        try:
            version, _, pairs = struct.unpack("<IQQ", file.read(20))
            if version not in (2, 3):
                raise ValueError(f"{path} is GGUF version {version}; versions 2 and 3 (little-endian) are read")
            return dict(_pair(file) for _ in range(pairs))
        except (struct.error, EOFError, KeyError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} has a damaged GGUF header near byte {file.tell()}: {error!r}") from error


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
