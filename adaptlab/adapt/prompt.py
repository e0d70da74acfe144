"""Prompt tuning: trained embeddings in front of every sequence."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation
from adaptlab.adapt.slots import bind_slots, choose_slots
from adaptlab.config import GIVEN

__all__ = ["only_path", "prompt"]

INITS = ("random", "vocabulary", "text")


def prompt(
    length: int = 16,
    *,
    init: Literal["random", "vocabulary", "text"] = "vocabulary",
    ids: Sequence[int] | None = None,
    among: int | None = None,
    embedding: str = "embed/embedding",
    slots: Annotated[Mapping[str, Any], GIVEN],
) -> Adaptation:
    """Trained embeddings E `[P, D]` in front of every sequence (arXiv:2104.08691, sec. 2): P D parameters.

    The model reads [E; X]; no loss is taken on E's positions. It does not start as the base: whatever E is, every
    token attends to it. A prompt of the embeddings of tokens is those tokens in front of every sequence.

    Args:
      length: P, the number of positions.
      init: where E starts: "random" is normal noise of the embedding table's own deviation, "vocabulary" the embeddings
        of tokens drawn at random, "text" those of `ids`, in order, repeated or cut to length (sec. 3.2 has the three).
      ids: the tokens of "text", or those "vocabulary" draws from.
      among: "vocabulary" draws from the first so many tokens only; the paper draws from the 5,000 most frequent.
        None draws from all.
      embedding: a pattern of the embedding table's whole path.
      slots: what the model declares.

    Raises:
      ValueError: a length below 1, an unknown init, "text" without ids, ids that init does not use, a model without a
        prompt slot; when initialised, a pattern that does not match one table, or a token it does not have.
    """
    if length < 1:
        raise ValueError(f"length={length} must be at least 1; use frozen() to train nothing.")
    if init not in INITS:
        raise ValueError(f"init={init!r} is not one of {list(INITS)}.")
    if (init == "text" and not ids) or (init == "random" and ids) or (among is not None and (init != INITS[1] or ids)):
        raise ValueError(
            f"init={init!r} with ids={ids} and among={among}: 'text' needs ids, 'vocabulary' takes ids or among, "
            f"'random' takes neither."
        )
    (path,) = choose_slots(slots, "prompt", ".*", "prompt")
    axes = (None, slots[path].axes[-1])

    def start(key: jax.Array, base: Any) -> Any:
        flat = tree.flatten(base, leaf.is_node)
        table = flat[only_path(flat, embedding)]
        if init == "random":
            deviation = jnp.std(leaf.dense(table)).astype(jnp.float32)
            return deviation * jax.random.normal(key, (length, slots[path].shape[-1]))
        size = jax.eval_shape(leaf.dense, table).shape[0]
        if beyond := [i for i in [*(ids or ()), (among or 1) - 1] if not 0 <= i < size]:
            raise ValueError(f"prompt starts from the tokens {beyond}, and {embedding!r} has the rows 0 to {size - 1}.")
        if init == "text":
            chosen = jnp.resize(jnp.asarray(ids, jnp.int32), (length,))
        else:
            offered = jnp.arange(among or size) if ids is None else jnp.asarray(ids, jnp.int32)
            chosen = jax.random.choice(key, offered, (length,))
        return leaf.take(table, chosen, jnp.float32)

    return Adaptation(
        lambda key, base: tree.unflatten({f"{path}/embeddings": start(key, base)}),
        lambda base, delta: bind_slots(base, {path: leaf.Prompt(tree.flatten(delta)[f"{path}/embeddings"])}),
        lambda base_axes: tree.unflatten({f"{path}/embeddings": axes}),
    )


def only_path(flat: Mapping[str, Any], pattern: str) -> str:
    """Return the one path that a pattern matches.

    Raises:
      ValueError: it matches none, or several.
    """
    found = [path for path, i in tree.select(flat, pattern).items() if i is not None]
    if len(found) > 1:
        raise ValueError(f"The pattern {pattern!r} must match one path, and matches {found}; narrow it.")
    return found[0]
