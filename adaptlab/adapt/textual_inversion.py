"""Textual inversion: a few rows of the embedding table train."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation, axes_of
from adaptlab.adapt.prompt import only_path

__all__ = ["textual_inversion"]


def textual_inversion(
    ids: Sequence[int] = (),
    *,
    count: int = 0,
    like: Sequence[int] | None = None,
    embedding: str = "embed/embedding",
) -> Adaptation:
    """Train the embeddings of N tokens and nothing else (arXiv:2208.01618, sec. 3): N D parameters.

    The tokens are given ones of the vocabulary, new ones behind it (the paper's pseudo-words), or both. New tokens have
    the ids V, V + 1, …: the text must use them. Where the head is the embedding table, the rows are those of the head
    too; new tokens then lengthen the logits, and take a share of every prediction from the start.

    Args:
      ids: tokens of the vocabulary.
      count: how many new tokens.
      like: for each of `ids` and each new token, in this order, the token whose embedding it starts from. None starts
        given tokens where they are, so that the adapted model starts as the base, and new ones as normal noise of the
        table's mean and deviation.
      embedding: a pattern of the embedding table's whole path.

    Raises:
      ValueError: no token, repeated or negative ids, or another number of `like`; when initialised, a pattern that does
        not match one table, or ids that it does not have.
    """
    given = [int(i) for i in ids]
    number = len(given) + count
    if number < 1 or count < 0:
        raise ValueError(f"ids={given} with count={count} trains no token; use frozen() to train nothing.")
    if len(set(given)) < len(given) or min(given, default=0) < 0:
        raise ValueError(f"ids={given} must be different and not negative.")
    if like is not None and len(like) != number:
        raise ValueError(f"like={list(like)} must name a token for each of the {number} that train.")

    def table_of(flat: dict[str, Any]) -> tuple[str, int]:
        path = only_path(flat, embedding)
        size = jax.eval_shape(leaf.dense, flat[path]).shape[0]
        if beyond := [i for i in [*given, *(like or ())] if not 0 <= i < size]:
            raise ValueError(f"{path!r} has the rows 0 to {size - 1} and not {beyond}; new tokens are a count.")
        return path, size

    def init(key: jax.Array, base: Any) -> Any:
        flat = tree.flatten(base, leaf.is_node)
        path, _ = table_of(flat)
        start = jnp.asarray([*given, *[0] * count] if like is None else like, jnp.int32)
        rows = leaf.take(flat[path], start, jnp.float32)
        if like is None and count:
            w = leaf.dense(flat[path]).astype(jnp.float32)
            noise = jnp.std(w, axis=0)[None] * jax.random.normal(key, (count, w.shape[1]))
            rows = jnp.concatenate([rows[: len(given)], jnp.mean(w, axis=0)[None] + noise])
        return tree.unflatten({f"{path}/rows": rows})

    def bind(base: Any, delta: Any) -> Any:
        flat = tree.flatten(base, leaf.is_node)
        path, size = table_of(flat)
        rows = tree.flatten(delta)[f"{path}/rows"]
        return tree.unflatten(flat | {path: leaf.Rows(flat[path], rows, (*given, *range(size, size + count)))})

    def axes(base_axes: Any) -> Any:
        flat = axes_of(base_axes)
        path = only_path(flat, embedding)
        return tree.unflatten({f"{path}/rows": (None, flat[path][-1])})

    return Adaptation(init, bind, axes)
