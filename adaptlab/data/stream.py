"""Batches as a function of (seed, step): nothing to save, any step at once, any number of hosts."""

import functools
from collections.abc import Callable

import numpy as np

from adaptlab.data.pack import Batch, empty_batch
from adaptlab.rng import generator_for

__all__ = ["fixed_batches", "make_stream"]


def make_stream(
    packed: Batch,
    batch_size: int,
    seed: int,
    name: str = "train",
    process_index: int = 0,
    process_count: int = 1,
) -> Callable[[int], Batch]:
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
    rows = len(packed.tokens)
    if not 1 <= batch_size <= rows:
        raise ValueError(
            f"stream {name!r} has {rows} rows of {packed.tokens.shape[1]} tokens for batch_size={batch_size}: "
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

    def batch(step: int) -> Batch:
        if step < 0:
            raise ValueError(f"step={step}: expected 0 or more")
        first = int(step) * batch_size + process_index * share
        chosen = [order(i // rows)[i % rows] for i in range(first, first + share)]
        return Batch(*(part[chosen] for part in packed))

    return batch


def fixed_batches(packed: Batch, batch_size: int, rows: int | None = None) -> list[Batch]:
    """Return the first `rows` rows, in order, as batches of one shape; all rows by default or if there are fewer.

    The last batch is filled up with rows of padding, which weigh nothing.
    """
    if batch_size < 1 or (rows is not None and rows < 1):
        raise ValueError(f"batch_size={batch_size}, rows={rows}: expected at least 1 of each")
    if not len(packed.tokens):
        raise ValueError("there are no rows: nothing can be measured on them. Allow more held-out text.")
    kept = Batch(*(part[:rows] for part in packed))
    missing = -len(kept.tokens) % batch_size
    padding = empty_batch(missing, kept.tokens.shape[1])
    full = Batch(*(np.concatenate(parts) for parts in zip(kept, padding, strict=True)))
    return [Batch(*(part[i : i + batch_size] for part in full)) for i in range(0, len(full.tokens), batch_size)]
