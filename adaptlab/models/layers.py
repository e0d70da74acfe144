"""Layers whose weights are read through `adaptlab.leaf`, so that any weight node may stand in them.

Letters: B batch, T time, D model, F out, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from adaptlab import leaf
from adaptlab.models.products import Fanned, activations, dot, dot_rows
from adaptlab.models.reading import gathered, on_many, read, slot, stored
from adaptlab.shard import constrain_rest

__all__ = ["ACTIVATIONS", "INIT_STD", "Embed", "LayerNorm", "Linear", "RMSNorm", "dropped", "residual"]


def _gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) by erf, which is a quarter cheaper on a CPU, with its derivative, than `nn.gelu`'s erfc."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * jnp.asarray(2**-0.5, x.dtype)))


def _computed_again(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Return f, elementwise, whose slope f'(x) is computed from x alone on the way back.

    Left to itself the compiler keeps what slope and value share, such as an error function: an array as wide as the
    feed-forward more to write and to read, which costs a CPU more than computing it twice.
    """

    @jax.custom_jvp
    def activation(x: jax.Array) -> jax.Array:
        return f(x)

    @activation.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (x,), (dx,) = primals, tangents
        again = leaf.as_written(x)
        _, slope = jax.jvp(f, (again,), (jnp.ones_like(again),))
        return activation(x), slope * dx

    return activation


ACTIVATIONS = {
    "gelu": _computed_again(_gelu),
    "gelu_new": _computed_again(functools.partial(nn.gelu, approximate=True)),
    "relu": nn.relu,
}
"""By the names of Hugging Face: "gelu" is x Φ(x) (arXiv:1606.08415), "gelu_new" its approximation by tanh."""

INIT_STD = 0.02
"""The standard deviation of random matrices and tables, as in GPT-2; see also `adaptlab.models.by_fan_in`."""


class Linear(nn.Module):
    """x W, with an optional bias; `axes` are the logical names of W's two axes. x may be `fan_out`'s."""

    features: int
    axes: tuple[str | None, str | None]
    use_bias: bool = False
    init: Callable[..., Any] = nn.initializers.normal(INIT_STD)

    @nn.compact
    def __call__(self, given: Any) -> jax.Array:
        x = given.x_BTD if isinstance(given, Fanned) else given
        kernel_DF = read(self, "kernel", self.init, (x.shape[-1], self.features), self.axes, x.dtype)
        y = activations(dot(given, kernel_DF, self.axes), self.axes[1])
        if self.use_bias:
            axes = ("embed_vector",) if self.axes[1] == "embed" else self.axes[1:]
            bias_F = read(self, "bias", nn.initializers.zeros, (self.features,), axes)
            y = y + _lifted(leaf.dense(bias_F), y).astype(y.dtype)
        return checkpoint_name(y, self.name) if self.name else y


class Embed(nn.Module):
    """A token table: rows for ids on the way in, `attend` for logits on the way out (tied embeddings).

    Positions and token types have such tables too; they are short, so that every device keeps all of their rows:
    `rows` is the logical name of that axis.
    """

    vocab_size: int
    width: int
    dtype: Any = jnp.float32
    rows: str | None = "vocab"

    def setup(self) -> None:
        shape, self.axes = (self.vocab_size, self.width), (self.rows, "embed")
        self.table = stored(self, "embedding", nn.initializers.normal(INIT_STD), shape, self.axes)

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        """Rows of the table, which stays where it rests: on a mesh with `fsdp` the rows travel instead.

        Every device looks up its columns of the embedding for the tokens of all, and they exchange those for all
        columns of their own tokens: less traffic than the table as soon as it has more rows than the batch tokens.
        """
        if not on_many():
            return leaf.take(self.table, ids_BT, self.dtype)
        table = leaf.map_arrays(constrain_rest, self.table, self.axes)
        x_BTD = leaf.take(table, constrain_rest(ids_BT, ("batch", "time")), self.dtype)
        return activations(constrain_rest(x_BTD, ("batch", "time", "embed")), "embed")

    def attend(self, x_BTD: jax.Array) -> jax.Array:
        table = gathered(self.table, self.axes, x_BTD.dtype)
        return activations(dot_rows(x_BTD, table, transpose=True), self.rows)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · scale (arXiv:1910.07467), reduced in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = leaf.dense(read(self, "scale", nn.initializers.ones, x.shape[-1:], ("embed_vector",)))
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * inverse * _lifted(scale_D, x32)).astype(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) · scale + bias (arXiv:1607.06450, eq. 4), reduced in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = leaf.dense(read(self, "scale", nn.initializers.ones, x.shape[-1:], ("embed_vector",)))
        bias_D = leaf.dense(read(self, "bias", nn.initializers.zeros, x.shape[-1:], ("embed_vector",)))
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
        return (centred * inverse * _lifted(scale_D, x32) + _lifted(bias_D, x32)).astype(x.dtype)


def _lifted(vector_F: jax.Array, like: jax.Array) -> jax.Array:
    """The vector as `[1, …, 1, F]`, of the rank of `like`: ranks are never promoted silently."""
    return jnp.expand_dims(vector_F, range(like.ndim - 1))


def dropped(module: nn.Module, x: jax.Array, rate: Any) -> jax.Array:
    """Drop activations with probability `rate`, which may be traced, and scale the rest by 1 / (1 - rate).

    None drops nothing and asks the module for no key.
    """
    if rate is None:
        return x
    keep = jax.random.uniform(module.make_rng("dropout"), x.shape) >= rate
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))


def residual(module: nn.Module, name: str, y: jax.Array, x: jax.Array) -> jax.Array:
    """Return what the node at a "residual" slot makes of a sub-layer's output y and input x; y itself if none is."""
    node = slot(module, name)
    return y if node is None else node(y, x)
