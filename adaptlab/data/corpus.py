"""Readers: from a source to a corpus of distinct, non-empty documents in a fixed order."""

import csv
import functools
import hashlib
import io
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from adaptlab.source import Source, local

__all__ = [
    "Corpus",
    "csv_corpus",
    "fingerprint",
    "folder_corpus",
    "local_text",
    "make_corpus",
    "text_corpus",
]

log = logging.getLogger(__name__)

_SPLITS: dict[str, Callable[[str], list[str]]] = {
    "file": lambda text: [text],
    "paragraph": functools.partial(re.split, r"\n\s*\n"),
    "line": str.splitlines,
}


class Corpus(NamedTuple):
    """Documents and where they come from; `digest` is the SHA-256 of the documents in their order."""

    name: str
    documents: tuple[str, ...]
    digest: str
    licence: str
    origin: dict[str, Any]


def make_corpus(name: str, documents: Iterable[str], licence: str = "", origin: Mapping[str, Any] = {}) -> Corpus:
    """Return the corpus of these documents, without empty ones and repetitions (equal `fingerprint`).

    Raises:
      ValueError: nothing is left.
    """
    distinct = {fingerprint(text): text for text in reversed(list(documents)) if text.strip()}
    kept = tuple(reversed(distinct.values()))
    if not kept:
        raise ValueError(f"corpus {name!r} has no document that is not empty; origin: {dict(origin)}")
    digest = hashlib.sha256()
    for text in kept:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return Corpus(name, kept, digest.hexdigest(), licence, dict(origin))


@functools.lru_cache(maxsize=2**18)
def fingerprint(text: str) -> str:
    """Return the SHA-256 of a text up to white space, letter case and Unicode composition (NFC).

    >>> fingerprint("Grüß  Gott\\n") == fingerprint("GRU\\u0308SS gott")
    True
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return hashlib.sha256(" ".join(folded.split()).encode()).hexdigest()


def csv_corpus(
    source: Source,
    column: str,
    name: str,
    where: Mapping[str, Any] | None = None,
    encoding: str = "utf-8-sig",
    delimiter: str = ",",
) -> Corpus:
    """Return the corpus of one column of a CSV file.

    Args:
      source: the file.
      column: the column of the texts; each row is a document.
      name: the corpus's name.
      where: keep the rows whose columns have these values, e.g. `{"chair": False}`; letter case is ignored.
      encoding: the file's encoding.
      delimiter: what separates columns.
    """
    where = {key: str(value).casefold() for key, value in (where or {}).items()}
    path = source.fetch()
    rows = _rows(path, encoding, delimiter)
    if not rows:
        raise ValueError(f"{path} of {name!r} has no rows")
    if missing := {column, *where} - set(rows[0]):
        raise ValueError(f"{path} has no column {sorted(missing)}; it has {', '.join(rows[0])}")
    kept = [row for row in rows if all((row[key] or "").casefold() == value for key, value in where.items())]
    if not kept:
        seen = {key: sorted({row[key] or "" for row in rows})[:8] for key in where}
        raise ValueError(f"no row of {path} has {where}; the columns have values such as {seen}")
    origin = {**source.origin, "column": column, "where": where}
    return make_corpus(name, (row[column] or "" for row in kept), source.licence, origin)


def folder_corpus(
    source: Source,
    name: str,
    pattern: str = "**/*.py",
    exclude: Sequence[str] = (),
    min_bytes: int = 1,
    max_bytes: int = 2**20,
    encoding: str = "utf-8-sig",
) -> Corpus:
    """Return the corpus of a folder's files, each a document, in the order of their paths.

    Args:
      source: the folder.
      name: the corpus's name.
      pattern: which files, as in `Path.glob`.
      exclude: patterns for single parts of the path inside the folder, e.g. `("test*", "site-packages")`.
      min_bytes: leave smaller files out.
      max_bytes: leave larger files out: they tend to be tables.
      encoding: files in any other encoding are left out, and counted in the log.
    """
    if not 0 <= min_bytes <= max_bytes:
        raise ValueError(f"min_bytes={min_bytes} and max_bytes={max_bytes}: expected 0 <= min_bytes <= max_bytes")
    folder = source.fetch()
    documents, undecodable = [], []
    for file in _found(folder, pattern, exclude):
        if min_bytes <= file.stat().st_size <= max_bytes:
            try:
                documents.append(file.read_bytes().decode(encoding))
            except UnicodeDecodeError:
                undecodable.append(file)
    if undecodable:
        log.info("%s: %d files are not %s, such as %s", name, len(undecodable), encoding, undecodable[0])
    origin = {**source.origin, "pattern": pattern, "exclude": list(exclude), "bytes": [min_bytes, max_bytes]}
    return make_corpus(name, documents, source.licence, origin)


def text_corpus(
    source: Source, name: str, split: str = "file", pattern: str = "**/*.txt", encoding: str = "utf-8-sig"
) -> Corpus:
    """Return the corpus of a text file, or of the text files in a folder, cut into documents.

    Args:
      source: the file or folder.
      name: the corpus's name.
      split: what is a document: a `"file"`, a `"paragraph"` (blank lines between), or a `"line"`.
      pattern: which files of a folder, as in `Path.glob`.
      encoding: the files' encoding.
    """
    if split not in _SPLITS:
        raise ValueError(f"split={split!r}: choose from {', '.join(_SPLITS)}")
    path = source.fetch()
    files = [path] if path.is_file() else list(_found(path, pattern, ()))
    documents = [piece for file in files for piece in _SPLITS[split](_decoded(file, encoding))]
    return make_corpus(name, documents, source.licence, {**source.origin, "split": split, "pattern": pattern})


def local_text(
    path: str | PathLike[str], name: str | None = None, split: str = "paragraph", pattern: str = "**/*.txt"
) -> Corpus:
    """Return `text_corpus` of a local file or folder; the name is the file's own unless given."""
    return text_corpus(local(path), name or Path(path).stem, split, pattern)


def _rows(path: Path, encoding: str, delimiter: str) -> list[dict[str, str]]:
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a speech is longer than the default 128 KiB
    try:
        return list(csv.DictReader(io.StringIO(_decoded(path, encoding), newline=""), delimiter=delimiter))
    finally:
        csv.field_size_limit(before)


def _found(folder: Path, pattern: str, exclude: Sequence[str]) -> Iterator[Path]:
    """The files that match a pattern of `Path.glob`, in the order of their paths; excluded folders are not entered."""
    names = sorted(set(_matching(str(folder), pattern.split("/"), exclude)))
    if not names:
        before = sum(file.is_file() for file in folder.glob(pattern))
        raise ValueError(f"no file in {folder} matches {pattern!r} ({before} before exclude={list(exclude)})")
    return (folder / name for name in names)


def _matching(folder: str, parts: Sequence[str], exclude: Sequence[str]) -> Iterator[str]:
    """Paths inside a folder by the parts of a pattern, with repetitions if there is more than one `**`."""
    first, *rest = parts
    with os.scandir(folder) as entries:
        there = [e for e in entries if not any(fnmatch(e.name, pattern) for pattern in exclude)]
    if first == "**":
        yield from _matching(folder, rest, exclude) if rest else ()
        below = [(e, parts) for e in there if e.is_dir(follow_symlinks=False)]
    elif rest:
        below = [(e, rest) for e in there if fnmatch(e.name, first) and e.is_dir()]
    else:
        yield from (e.name for e in there if fnmatch(e.name, first) and e.is_file())
        return
    for entry, inside in below:
        yield from (f"{entry.name}/{name}" for name in _matching(entry.path, inside, exclude))


def _decoded(path: Path, encoding: str) -> str:
    try:
        return path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not {encoding}: {error}; give its encoding=") from error
