"""Where in a row tokens stand: behind a prefix, within a table of learned positions, and by how much RoPE turns them.

Letters: B batch, T time, H heads, K head width, P the tokens of a prefix.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from adaptlab.models.reading import slot
from adaptlab.shard import on_one_cpu

__all__ = ["behind_prefix", "fitting", "rotary", "rotary_angles"]


def behind_prefix(module: nn.Module, positions_BT: jax.Array) -> tuple[jax.Array, int]:
    """Return the positions of tokens behind the prefix that is bound in a model's layers, and its length P.

    A prefix is the first P tokens of the sequence, of which only keys and values are known (arXiv:2101.00190, sec.
    4.1): the text's first position is P.
    """
    layers = slot(module, "layers") or {}
    node = layers.get("attention", {}).get("prefix")
    P = 0 if node is None else node.keys_values()[0].shape[-3]
    return positions_BT + P, P


def fitting(length: int, context: int) -> None:
    """Raise ValueError for rows, a prompt's among them, that are longer than the table of learned positions."""
    if length > context:
        raise ValueError(
            f"a row of {length} tokens (those of a prompt or prefix included) is longer than the {context} positions "
            "the model has learned; use shorter rows."
        )


def rotary_angles(positions_BT: jax.Array, width: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Return cos and sin `[B, T, 1, K/2]` of position · base^(-2i/K) (RoPE, arXiv:2104.09864, eq. 15)."""
    frequency = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = positions_BT[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
    if not on_one_cpu():
        return jnp.cos(angle), jnp.sin(angle)
    # In a loop: outside of one XLA merges them into all that read them, which is every layer, forward and backward.
    both = jax.lax.map(lambda i: jax.lax.switch(i, (jnp.cos, jnp.sin), angle), jnp.arange(2))
    return both[0], both[1]


def rotary(x_BTHK: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the pairs (x_i, x_{i+K/2}) by their angle: the half-split convention of Hugging Face's Llama."""
    x32 = x_BTHK.astype(jnp.float32)
    first, second = jnp.split(x32, 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHK.dtype)
