"""From documents of any length to rows of one length, with nothing lost and nothing padded but the end."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float32, Int32

__all__ = ["Batch", "empty_batch", "pack"]


class Batch(NamedTuple):
    """Rows of packed text.

    tokens: the inputs; 0 where padded.
    targets: the token that follows each input; 0 where padded.
    segments: 1, 2, … for the documents in a row, 0 for padding. Attention stays inside a segment.
    positions: 0, 1, … from the start of each segment in a row.
    weights: 1 where the target counts, 0 where it belongs to another document or is padding.
    """

    tokens: Int32[Array | np.ndarray, "B T"]
    targets: Int32[Array | np.ndarray, "B T"]
    segments: Int32[Array | np.ndarray, "B T"]
    positions: Int32[Array | np.ndarray, "B T"]
    weights: Float32[Array | np.ndarray, "B T"]


def pack(documents: Sequence[np.ndarray], length: int) -> Batch:
    """Return the rows of the documents' tokens, one after another.

    With `s` the concatenation of all documents, row r has the inputs s[rT : rT+T] and the targets s[rT+1 :
    rT+T+1], T = `length`. So each token but the first of each document is predicted exactly once. A document
    that runs over the end of a row goes on in the next one without its past, and starts there at position 0.

    Raises:
      ValueError: `length` is not positive, or no document has a second token to predict.
    """
    if length < 1:
        raise ValueError(f"length={length}: expected at least 1 token")
    documents = [np.asarray(document) for document in documents if len(document)]
    if all(len(document) < 2 for document in documents):
        raise ValueError(f"none of the {len(documents)} documents has a second token: there is nothing to predict")
    stream = np.concatenate(documents)
    owners = np.repeat(np.arange(1, len(documents) + 1), [len(document) for document in documents])
    rows = -(-(len(stream) - 1) // length)

    def shaped(values: np.ndarray, start: int) -> np.ndarray:
        values = values[start : start + rows * length]
        return np.pad(values, (0, rows * length - len(values))).reshape(rows, length)

    owners_BT, next_BT = shaped(owners, 0), shaped(owners, 1)
    begins_BT = np.diff(owners_BT, axis=1, prepend=owners_BT[:, :1]) != 0
    column_BT = np.broadcast_to(np.arange(length), (rows, length))
    starts_BT = np.maximum.accumulate(np.where(begins_BT, column_BT, 0), axis=1)
    real_BT = owners_BT > 0
    return Batch(
        tokens=shaped(stream, 0).astype(np.int32),
        targets=shaped(stream, 1).astype(np.int32),
        segments=np.where(real_BT, 1 + np.cumsum(begins_BT, axis=1), 0).astype(np.int32),
        positions=np.where(real_BT, column_BT - starts_BT, 0).astype(np.int32),
        weights=(real_BT & (owners_BT == next_BT)).astype(np.float32),
    )


def empty_batch(rows: int, length: int) -> Batch:
    """Return rows of padding, which weigh nothing."""
    shape = (rows, length)
    return Batch(*(np.zeros(shape, np.int32) for _ in range(4)), weights=np.zeros(shape, np.float32))
