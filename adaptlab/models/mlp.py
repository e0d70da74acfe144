"""A plain multilayer perceptron, for experiments in which everything else is controlled."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adaptlab.models.layers import Linear
from adaptlab.models.model import Model

__all__ = ["ACTIVATIONS", "mlp"]

ACTIVATIONS = {"tanh": jnp.tanh, "relu": nn.relu, "gelu": nn.gelu, "identity": lambda x: x}


class _MLP(nn.Module):
    widths: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal()
        for i, width in enumerate(self.widths[1:]):
            x = x if i == 0 else ACTIVATIONS[self.activation](x)
            x = Linear(width, ("embed", "ffn"), use_bias=True, init=init, name=f"dense_{i}")(x)
        return x


def mlp(widths: Sequence[int], *, activation: str = "tanh") -> Model:
    """Return a dense network of the given widths, input and output included.

    `apply(params, x)` maps `[..., widths[0]]` to `[..., widths[-1]]`, without an activation after the last layer.

    Raises:
      ValueError: fewer than two widths, or an unknown activation.
    """
    if len(widths) < 2:
        raise ValueError(f"widths={list(widths)} needs an input and an output width.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is not one of {sorted(ACTIVATIONS)}.")
    module = _MLP(tuple(widths), activation)

    def boxed(key: jax.Array) -> Any:
        return module.init(key, jnp.zeros((1, widths[0])))["params"]

    def apply(params: Any, x: jax.Array) -> Any:
        return module.apply({"params": params}, x)

    def axes() -> Any:
        specs = nn.get_partition_spec(jax.eval_shape(boxed, jax.random.key(0)))
        return jax.tree.map(tuple, specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))

    return Model(lambda key: nn.unbox(boxed(key)), apply, axes)
