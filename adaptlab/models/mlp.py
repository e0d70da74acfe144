"""A plain multilayer perceptron, for experiments in which everything else is controlled."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from adaptlab.models.layers import Linear
from adaptlab.models.model import Model
from adaptlab.models.reading import refuse_unread

__all__ = ["ACTIVATIONS", "mlp"]

ACTIVATIONS = {"tanh": jnp.tanh, "relu": nn.relu, "gelu": nn.gelu, "identity": lambda x: x}


class _MLP(nn.Module):
    widths: tuple[int, ...]
    activation: str
    base_width: int | None
    gain: float
    head_init: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        last = len(self.widths) - 2
        growth = self.widths[-2] / self.base_width if self.base_width else 1.0
        for i, width in enumerate(self.widths[1:]):
            x = x if i == 0 else ACTIVATIONS[self.activation](x)
            x = x / growth if i == last and self.base_width else x
            init = self._init(growth if i == last else 1.0, zero=i == last and self.head_init == "zeros")
            x = Linear(width, ("embed", "ffn"), use_bias=True, init=init, name=f"dense_{i}")(x)
        return x

    def _init(self, growth: float, zero: bool) -> Any:
        if zero:
            return nn.initializers.zeros
        return nn.initializers.variance_scaling(self.gain**2 * growth, "fan_in", "truncated_normal")


def mlp(
    widths: Sequence[int],
    *,
    activation: str = "tanh",
    base_width: int | None = None,
    gain: float = 1.0,
    head_init: Literal["normal", "zeros"] = "normal",
) -> Model:
    """Return a dense network of the given widths, input and output included.

    `apply(params, x)` maps `[..., widths[0]]` to `[..., widths[-1]]`, without an activation after the last layer.
    Kernels start normal (truncated) with variance gain² / fan-in, biases at zero.

    Args:
      widths: D₀ … D_n.
      activation: between the layers.
      base_width: None is the standard parametrisation. Otherwise muP (arXiv:2203.03466, table 8) with the standard
        one at this hidden width: the last layer is x W / n + b with W's variance gain² / base_width, n = the width
        of the last hidden layer over base_width. The rates that belong to it are
        `adaptlab.optim.mup.mup(base_width, input="dense_0/.*", output="dense_<last>/.*", head="multiplier")`.
      gain: 1 is LeCun's initialisation; 1/√3 has the variance of PyTorch's Linear.
      head_init: "zeros" starts the last layer at zero, which muP recommends (app. D.2): the start is then the same
        at every width.

    Raises:
      ValueError: fewer than two widths (three with base_width), or an unknown activation or head_init.
    """
    if len(widths) < 2:
        raise ValueError(f"widths={list(widths)} needs an input and an output width.")
    if base_width is not None and (len(widths) < 3 or base_width < 1):
        raise ValueError(f"base_width={base_width} needs to be positive, and a hidden layer in widths={list(widths)}.")
    if head_init not in ("normal", "zeros"):
        raise ValueError(f"head_init={head_init!r} is not one of ['normal', 'zeros'].")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is not one of {sorted(ACTIVATIONS)}.")
    module = _MLP(tuple(widths), activation, base_width, gain, head_init)

    def boxed(key: jax.Array) -> Any:
        return module.init(key, jnp.zeros((1, widths[0])))["params"]

    def apply(params: Any, x: jax.Array) -> Any:
        refuse_unread(params, axes(), {})
        return module.apply({"params": params}, x)

    @functools.cache
    def axes() -> Any:
        specs = nn.get_partition_spec(jax.eval_shape(boxed, jax.random.key(0)))
        return jax.tree.map(tuple, specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))

    return Model(lambda key: nn.unbox(boxed(key)), apply, axes)
