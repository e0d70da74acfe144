"""Batches as a function of (seed, step): nothing to save, any step at once, any number of hosts."""

import functools
from collections.abc import Callable
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
    process_index: int = 0,
    process_count: int = 1,
) -> Callable[[int], Rows]:
    """Return the function from a step to its batch: shuffled rows without end, each once an epoch.

    Row i of the endless stream is row p(i mod N) of `packed`, where p is the permutation of epoch i div N,
    drawn from the random stream `data/<name>`. Step t holds the rows t·B … t·B+B-1, B = `batch_size`, so it
    may span two epochs.

    Args:
      packed: N rows.
      batch_size: the number of rows in a step, over all hosts.
      seed: the seed of the order.
      name: the stream's name: streams of other names are independent.
      process_index: which equal share of each batch to return; the shares of all hosts, in their order, are
        the batch.
      process_count: the number of hosts.
    """
    whole: Any = packed
    rows = len(whole.tokens)
    if not 1 <= batch_size <= rows:
        raise ValueError(
            f"stream {name!r} has {rows} rows of {whole.tokens.shape[1]} tokens for batch_size={batch_size}: "
            "expected 1 <= batch_size <= rows. Use a smaller batch, shorter rows or more text."
        )
    if process_count < 1 or batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"batch_size={batch_size} for host {process_index} of {process_count}: expected a batch size that "
            "the number of hosts divides, and 0 <= process_index < process_count"
        )
    share = batch_size // process_count

    @functools.lru_cache(maxsize=2)  # a batch spans at most two epochs
    def order(epoch: int) -> np.ndarray:
        return generator_for(seed, f"data/{name}", epoch).permutation(rows)

    def batch(step: int) -> Rows:
        if step < 0:
            raise ValueError(f"step={step}: expected 0 or more")
        first = int(step) * batch_size + process_index * share
        chosen = [order(i // rows)[i % rows] for i in range(first, first + share)]
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
