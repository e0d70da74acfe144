"""A domain: one corpus, tokenised, split and packed, with the record of what exactly that was."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaptlab.data.corpus import Corpus
from adaptlab.data.pack import Batch, empty_batch, pack
from adaptlab.data.split import split
from adaptlab.data.tokenizer import Tokenizer

__all__ = ["Domain", "load_domain"]

# Characters encoded at a time: enough to keep a tokenizer's threads busy, few enough when little is wanted.
_CHUNK_CHARACTERS = 2**17


class Domain(NamedTuple):
    """Packed rows of both sides of a corpus; `provenance` is plain JSON values for a passport."""

    name: str
    train: Batch
    held_out: Batch
    provenance: dict[str, Any]


def load_domain(
    corpus: Corpus,
    tokenizer: Tokenizer,
    length: int,
    held_out: float = 0.1,
    max_train_tokens: int | None = None,
    max_held_out_tokens: int | None = None,
    max_document_tokens: int | None = None,
) -> Domain:
    """Split a corpus by document, tokenise as much of it as is wanted, and pack it.

    Args:
      corpus: the documents.
      tokenizer: the base model's tokenizer.
      length: tokens in a row.
      held_out: the fraction of the documents that is held out.
      max_train_tokens: tokenise only so much to train on: a random sample of the documents, always the same.
        0: none, for a domain that is only measured.
      max_held_out_tokens: the same for the held-out side.
      max_document_tokens: cut documents after so many tokens, so that a small sample is not a single long
        one.
    """
    if max_held_out_tokens == 0:
        raise ValueError("max_held_out_tokens=0: a domain without held-out text cannot be measured")
    sides = split(corpus, held_out)
    limits = {"train": max_train_tokens, "held_out": max_held_out_tokens}
    packed, records = {}, {}
    for side, documents in zip(limits, sides, strict=True):
        tokens = _tokens(documents.documents, tokenizer, limits[side], max_document_tokens)
        packed[side] = pack(tokens, length) if limits[side] != 0 else empty_batch(0, length)
        records[side] = {
            "digest": documents.digest,
            "documents": len(documents.documents),
            "documents_used": len(tokens),
            "tokens_used": int(sum(map(len, tokens))),
            "bytes_used": int(sum(tokenizer.token_bytes_V[ids].sum() for ids in tokens)),
            "tokens_sha256": _digest(tokens),
        }
    provenance = {
        "name": corpus.name,
        "digest": corpus.digest,
        "licence": corpus.licence,
        "origin": corpus.origin,
        "tokenizer": tokenizer.digest,
        "held_out_fraction": held_out,
        "length": length,
        **records,
    }
    return Domain(corpus.name, packed["train"], packed["held_out"], provenance)


def _tokens(
    documents: Sequence[str], tokenizer: Tokenizer, limit: int | None, limit_each: int | None
) -> list[np.ndarray]:
    """Encode documents in their order until the limit; the last one is cut to meet it."""
    if (limit or 0) < 0 or (limit_each is not None and limit_each < 2):
        raise ValueError(f"token limits {limit} (all) and {limit_each} (each document): expected >= 0 and >= 2")
    kept: list[np.ndarray] = []
    left = limit if limit is not None else np.inf
    for chunk in _chunks(documents):
        if left <= 0:
            break
        for ids in tokenizer.encode(chunk):
            ids = ids[: int(min(len(ids), left, limit_each or np.inf))]
            if len(ids):
                kept.append(ids)
                left -= len(ids)
    return kept


def _chunks(documents: Sequence[str]) -> Iterator[list[str]]:
    chunk, size = [], 0
    for text in documents:
        chunk.append(text)
        size += len(text)
        if size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _digest(tokens: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for ids in tokens:
        digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i4").tobytes())
    return digest.hexdigest()
