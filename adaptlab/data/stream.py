"""Batches as a function of (seed, step): nothing to save, any step at once, any number of hosts."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from adaptlab.rng import generator_for

__all__ = ["fixed_batches", "make_stream"]

Rows = TypeVar("Rows", bound=tuple)
"""A NamedTuple of arrays with one leading axis, `tokens` `[N, T]` among them: `Batch`, `LabelledBatch`."""


def make_stream(
    packed: Rows,
    batch_size: int,
    seed: int,
    name: str = "train",
    rows: Sequence[int] | np.ndarray | None = None,
) -> Callable[[int], Rows]:
    """Return the function from a step to its batch: shuffled rows without end, each once an epoch.

    Row i of the endless stream is row p(i mod N) of `packed`, where p is the permutation of epoch i div N,
    drawn from the random stream `data/<name>`. Step t holds the rows t·B … t·B+B-1, B = `batch_size`, so it
    may span two epochs.

    Args:
      packed: N rows.
      batch_size: the number of rows in a step, B.
      seed: the seed of the order.
      name: the stream's name: streams of other names are independent.
      rows: which of the rows 0 … B-1 of each step to return: those that the devices of this host hold
        (`adaptlab.shard.local_rows`). None returns all of them.
    """
    whole: Any = packed
    count = len(whole.tokens)
    if not 1 <= batch_size <= count:
        raise ValueError(
            f"stream {name!r} has {count} rows of {whole.tokens.shape[1]} tokens for batch_size={batch_size}: "
            "expected 1 <= batch_size <= rows. Use a smaller batch, shorter rows or more text."
        )
    share = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
    if len(share) and not 0 <= share.min() <= share.max() < batch_size:
        raise ValueError(f"rows={share.tolist()} of batch_size={batch_size}: expected rows from 0 to {batch_size - 1}")

    @functools.lru_cache(maxsize=2)  # a batch spans at most two epochs
    def order(epoch: int) -> np.ndarray:
        return generator_for(seed, f"data/{name}", epoch).permutation(count)

    def batch(step: int) -> Rows:
        if step < 0:
            raise ValueError(f"step={step}: expected 0 or more")
        chosen = [order(i // count)[i % count] for i in (int(step) * batch_size + share).tolist()]
        return whole._make(part[chosen] for part in whole)

    return batch


def fixed_batches(packed: Rows, batch_size: int, rows: int | None = None) -> list[Rows]:
    """Return the first `rows` rows, in order, as batches of one shape; all rows by default or if there are fewer.

    The last batch is filled up with rows of zeros, which weigh nothing.
    """
    if batch_size < 1 or (rows is not None and rows < 1):
        raise ValueError(f"batch_size={batch_size}, rows={rows}: expected at least 1 of each")
    whole: Any = packed
    if not len(whole.tokens):
        raise ValueError("there are no rows: nothing can be measured on them. Allow more held-out text.")
    kept = [part[:rows] for part in whole]
    missing = -len(kept[0]) % batch_size
    full = [np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)]) for part in kept]
    return [whole._make(part[i : i + batch_size] for part in full) for i in range(0, len(full[0]), batch_size)]
