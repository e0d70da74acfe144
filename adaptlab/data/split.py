"""Train and held-out documents that cannot leak into each other."""

from collections.abc import Iterable
from typing import NamedTuple

from adaptlab.data.corpus import Corpus, fingerprint, make_corpus

__all__ = ["Split", "check_disjoint", "split"]


class Split(NamedTuple):
    """The two sides of a corpus, each with its own digest."""

    train: Corpus
    held_out: Corpus


def split(corpus: Corpus, held_out: float = 0.1) -> Split:
    """Split a corpus by each document's own content, so that a document's side depends on nothing else.

    A document is held out if its `fingerprint`, read as a fraction of 1, is below `held_out`. Hence documents
    that are added, removed or reordered move no other document; equal documents are on the same side (and
    kept once); and what is held out stays so when the fraction grows. Each side is ordered by fingerprint:
    any beginning of it is a random sample.

    Raises:
      ValueError: the fraction is not strictly between 0 and 1, or one side is empty.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out}: expected a fraction strictly between 0 and 1")
    prints = sorted((fingerprint(text), text) for text in corpus.documents)
    bound = held_out * 2**256
    # Compared as exact numbers: the 64 hexadecimal digits are an integer below 2**256.
    sides = {side: [text for key, text in prints if (int(key, 16) < bound) is side] for side in (True, False)}
    if not (sides[True] and sides[False]):
        raise ValueError(
            f"corpus {corpus.name!r} has {len(prints)} documents, and held_out={held_out} leaves "
            f"{len(sides[False])} to train on and {len(sides[True])} held out: change the fraction, or cut the "
            "text into more documents (split=paragraph or split=line)"
        )
    parts = Split(
        make_corpus(f"{corpus.name}/train", sides[False], corpus.licence, corpus.origin),
        make_corpus(f"{corpus.name}/held_out", sides[True], corpus.licence, corpus.origin),
    )
    check_disjoint(parts.train.documents, parts.held_out.documents)
    return parts


def check_disjoint(train: Iterable[str], held_out: Iterable[str]) -> None:
    """Raise ValueError, with the document's beginning, if a held-out document is also trained on."""
    seen = {fingerprint(text) for text in train}
    for text in held_out:
        if fingerprint(text) in seen:
            raise ValueError(f"this held-out document is also trained on: {' '.join(text.split())[:200]!r}")
