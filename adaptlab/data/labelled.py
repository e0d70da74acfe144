"""Labelled text: readers, and rows of one text each with its class."""

import bz2
import csv
import gzip
import hashlib
import io
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float32, Int32

from adaptlab.data.corpus import fingerprint
from adaptlab.data.tokenizer import Tokenizer
from adaptlab.source import Source

__all__ = [
    "Examples",
    "Labelled",
    "LabelledBatch",
    "LabelledRows",
    "labelled_folder",
    "labelled_table",
    "load_labelled",
    "make_labelled",
    "padded_rows",
]

log = logging.getLogger(__name__)

_OPENERS: dict[str, Callable[[bytes], bytes]] = {".bz2": bz2.decompress, ".gz": gzip.decompress}


class Examples(NamedTuple):
    """Texts and the index of each one's class."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


class Labelled(NamedTuple):
    """A labelled corpus; both sides are ordered by fingerprint, so that any beginning of one is a random sample."""

    name: str
    classes: tuple[str, ...]
    train: Examples
    held_out: Examples
    licence: str
    origin: dict[str, Any]


class LabelledBatch(NamedTuple):
    """Rows of one text each.

    tokens: the text inside its frame (`Tokenizer.frame`), cut to the row; 0 where padded.
    targets: the class.
    segments: 1 where there is text, 0 for padding.
    weights: 1 for a text, 0 for a row that fills up a batch.
    """

    tokens: Int32[Array | np.ndarray, "B T"]
    targets: Int32[Array | np.ndarray, "B"]
    segments: Int32[Array | np.ndarray, "B T"]
    weights: Float32[Array | np.ndarray, "B"]


class LabelledRows(NamedTuple):
    """Both sides of a labelled corpus as rows; `provenance` is plain JSON values for a passport."""

    name: str
    classes: tuple[str, ...]
    train: LabelledBatch
    held_out: LabelledBatch
    provenance: dict[str, Any]


def labelled_folder(
    source: Source, name: str, pattern: str = "*/*.txt", fraction: float = 0.2, encoding: str = "utf-8-sig"
) -> Labelled:
    """Return the labelled corpus of a folder's files: a file is a text, its folder's name the class.

    Args:
      source: the folder.
      name: the corpus's name.
      pattern: which files, as in `Path.glob`.
      fraction: the share of texts that is held out, chosen by their content (see `adaptlab.data.split`).
      encoding: files in any other encoding are left out, and counted in the log.
    """
    folder = source.fetch()
    files = sorted(folder.glob(pattern), key=lambda file: file.relative_to(folder).as_posix())
    pairs, undecodable = [], []
    for file in filter(Path.is_file, files):
        try:
            pairs.append((file.read_bytes().decode(encoding), file.parent.name))
        except UnicodeDecodeError:
            undecodable.append(file)
    if undecodable:
        log.info("%s: %d files are not %s, such as %s", name, len(undecodable), encoding, undecodable[0])
    origin = {**source.origin, "pattern": pattern, "fraction": fraction}
    return make_labelled(name, pairs, None, fraction, licence=source.licence, origin=origin)


def labelled_table(
    source: Source,
    name: str,
    text: str,
    label: str,
    test: Source | None = None,
    fraction: float = 0.2,
    classes: Sequence[str] | None = None,
    delimiter: str = ",",
    skip: int = 0,
    encoding: str = "utf-8-sig",
) -> Labelled:
    """Return the labelled corpus of two columns of a table, which may be compressed (.bz2, .gz).

    Args:
      source: the table.
      name: the corpus's name.
      text: the column of the texts.
      label: the column of the classes' names.
      test: the table of a standard split's held-out side.
      fraction: without one, the share of texts that is held out, chosen by their content.
      classes: keep the rows of these classes only; None keeps all.
      delimiter: what separates columns.
      skip: rows below the header that are no texts.
      encoding: the tables' encoding.
    """

    def pairs(one: Source) -> list[tuple[str, str]]:
        path = one.fetch()
        rows = _rows(path, delimiter, encoding)[skip:]
        if missing := {text, label} - set(rows[0] if rows else ()):
            raise ValueError(f"{path} has no column {sorted(missing)}; it has {', '.join(rows[0]) if rows else 'none'}")
        return [(row[text] or "", row[label] or "") for row in rows if classes is None or row[label] in classes]

    origin = {**source.origin, "text": text, "label": label, "classes": list(classes) if classes else None}
    origin |= {"test": test.origin} if test else {"fraction": fraction}
    return make_labelled(
        name, pairs(source), pairs(test) if test else None, fraction, licence=source.licence, origin=origin
    )


def make_labelled(
    name: str,
    pairs: Iterable[tuple[str, str]],
    test: Iterable[tuple[str, str]] | None = None,
    fraction: float = 0.2,
    *,
    licence: str = "",
    origin: Mapping[str, Any] = {},
) -> Labelled:
    """Return the labelled corpus of (text, class) pairs.

    A given test side stays whole, so that results compare with published ones. What is trained on has no empty text,
    none twice, and none that is also held out; the log counts what was left out.

    Args:
      name: the corpus's name.
      pairs: what to train on; without `test`, what to split.
      test: the held-out side of a standard split.
      fraction: without one, the share that is held out: a text is if its fingerprint, as a fraction of 1, is below.
      licence: the licence of the texts.
      origin: where they come from, in plain JSON values.

    Raises:
      ValueError: fewer than two classes, an empty side, or a class that is held out but never trained on.
    """
    if test is None and not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction}: expected a fraction strictly between 0 and 1")
    pairs = [(text, label) for text, label in pairs if text.strip()]
    distinct = {fingerprint(text): (text, label) for text, label in reversed(pairs)}
    if test is None:
        held = [pair for key, pair in distinct.items() if int(key, 16) < fraction * 2**256]
    else:
        held = [(text, label) for text, label in test if text.strip()]
    keys = {fingerprint(text) for text, _ in held}
    trained = [pair for key, pair in distinct.items() if key not in keys]
    if test is not None and (left := len(pairs) - len(trained)):
        log.info("%s: %d texts to train on are left out: they repeat, or are held out too", name, left)
    classes = tuple(sorted({label for _, label in trained}))
    if unknown := sorted({label for _, label in held} - set(classes)):
        raise ValueError(f"labelled corpus {name!r}: no text to train on has the held-out classes {unknown}")
    if len(classes) < 2 or not held:
        raise ValueError(
            f"labelled corpus {name!r} has the classes {list(classes)} and {len(held)} held-out texts: expected at "
            "least 2 classes and 1 text"
        )
    return Labelled(name, classes, _examples(trained, classes), _examples(held, classes), licence, dict(origin))


def load_labelled(
    corpus: Labelled, tokenizer: Tokenizer, length: int, max_train: int | None = None, max_held_out: int | None = None
) -> LabelledRows:
    """Tokenise as much of a labelled corpus as is wanted, one text a row.

    Args:
      corpus: the texts and their classes.
      tokenizer: the base model's.
      length: tokens in a row; longer texts are cut.
      max_train: train on so many texts only.
      max_held_out: measure so many only.
    """
    limits = {"train": (corpus.train, max_train), "held_out": (corpus.held_out, max_held_out)}
    sides, records = {}, {}
    for side, (examples, limit) in limits.items():
        texts, labels = examples.texts[:limit], examples.labels[:limit]
        tokens, segments = padded_rows(texts, tokenizer, length)
        sides[side] = LabelledBatch(tokens, np.array(labels, np.int32), segments, np.ones(len(texts), np.float32))
        records[side] = {
            "texts": len(examples.texts),
            "texts_used": len(texts),
            "texts_cut": int(np.sum(segments[:, -1])),
            "by_class": {name: labels.count(i) for i, name in enumerate(corpus.classes)},
            "digest": _digest(texts, labels),
        }
    provenance = {
        "name": corpus.name,
        "licence": corpus.licence,
        "origin": corpus.origin,
        "classes": list(corpus.classes),
        "tokenizer": tokenizer.digest,
        "length": length,
        **records,
    }
    return LabelledRows(corpus.name, corpus.classes, sides["train"], sides["held_out"], provenance)


def padded_rows(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and segments `[B, T]` of one text a row, inside the tokenizer's frame.

    Raises:
      ValueError: the frame leaves no room for text.
    """
    front, behind = tokenizer.frame
    room = length - len(front) - len(behind)
    if room < 1:
        raise ValueError(f"length={length} leaves no room beside the {len(front) + len(behind)} tokens of the frame")
    tokens = np.zeros((len(texts), length), np.int32)
    segments = np.zeros((len(texts), length), np.int32)
    for row, ids in enumerate(tokenizer.encode(texts)):
        framed = [*front, *ids[:room], *behind]
        tokens[row, : len(framed)] = framed
        segments[row, : len(framed)] = 1
    return tokens, segments


def _examples(pairs: Iterable[tuple[str, str]], classes: Sequence[str]) -> Examples:
    index = {name: i for i, name in enumerate(classes)}
    ordered = sorted(pairs, key=lambda pair: fingerprint(pair[0]))
    return Examples(tuple(text for text, _ in ordered), tuple(index[label] for _, label in ordered))


def _digest(texts: Sequence[str], labels: Sequence[int]) -> str:
    digest = hashlib.sha256()
    for text, label in zip(texts, labels, strict=True):
        data = text.encode()
        digest.update(label.to_bytes(4, "little") + len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _rows(path: Path, delimiter: str, encoding: str) -> list[dict[str, str]]:
    text = _OPENERS.get(path.suffix, bytes)(path.read_bytes()).decode(encoding)
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than the default 128 KiB
    # Tables of tabs quote nothing, so that a quotation mark in a text is one.
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting))
    finally:
        csv.field_size_limit(before)
