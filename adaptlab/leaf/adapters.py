"""Nodes that add computation to a sub-layer: what stands at a "residual" slot of a model.

A model calls them as `node(y, x)`, y `[..., D]` what the sub-layer adds to the residual stream and x `[..., D]` what it
read. They stand for no array, so they cannot be merged into one.

Letters: L leading (layer) axes, D model width, R bottleneck width, N parts of a Kronecker product, A adapters.
"""

from collections.abc import Callable
from dataclasses import field
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax import lax

from adaptlab.leaf.weight import Weight, dot, node, product, take

__all__ = ["ACTIVATIONS", "Bottleneck", "Fusion", "KroneckerSum", "refuse_merging"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


def refuse_merging(added: Any) -> NoReturn:
    """Raise for a node that adds computation: there is no array it stands for.

    Raises:
      ValueError: always.
    """
    raise ValueError(
        f"{type(added).__name__} adds computation to the model and stands for no array, so it cannot be merged; keep "
        f"the delta beside the base, or adapt kernels (lora, ia3), which merge."
    )


@node
class Bottleneck:
    """y + scale · (f(h W_down + b_down) W_up + b_up), with h = y in series or h = x in parallel.

    Attributes:
      down: W_down `[*L, D, R]`, an array or a node.
      down_bias: `[*L, R]`.
      up: W_up `[*L, R, D]`, an array or a node.
      up_bias: `[*L, D]`.
      scale: `[*L]`.
      activation: f, a name in `ACTIVATIONS`.
      parallel: whether the adapter reads the sub-layer's input instead of its output.
    """

    down: Weight
    down_bias: jax.Array
    up: Weight
    up_bias: jax.Array
    scale: jax.Array
    activation: str = field(metadata={"static": True})
    parallel: bool = field(metadata={"static": True})

    def __call__(self, y: jax.Array, x: jax.Array) -> jax.Array:
        h = _shifted(dot(x if self.parallel else y, self.down), self.down_bias)
        added = _shifted(dot(ACTIVATIONS[self.activation](h), self.up), self.up_bias)
        return y + self.scale.astype(y.dtype) * added

    def dense(self) -> jax.Array:
        refuse_merging(self)


@node
class KroneckerSum:
    """W = Σ_n rules_n ⊗ (left_n right_n), never formed: a parametrised hypercomplex multiplication of low rank.

    The sum has N terms, each the Kronecker product of an N × N rule and a D/N × F/N matrix of rank R
    (arXiv:2106.04647, eqs. 3 and 4; the product itself is arXiv:2102.08597, eq. 3).

    Attributes:
      rules: `[*L, N, N, N]`, the term first.
      left: `[*L, N, D/N, R]`.
      right: `[*L, N, R, F/N]`.
    """

    rules: jax.Array
    left: jax.Array
    right: jax.Array

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        rules, first, second = (z.astype(x.dtype) for z in (self.rules, self.left, self.right))
        if transpose:
            rules, first, second = (z.swapaxes(-1, -2) for z in (rules, second, first))
        parts = x.reshape(-1, rules.shape[-1], first.shape[-2])
        wide: Any = {"preferred_element_type": jnp.float32}
        inner = jnp.einsum("bip,npr->bnir", parts, first, **wide).astype(x.dtype)
        mixed = jnp.einsum("bnir,nij->bnjr", inner, rules, **wide).astype(x.dtype)
        outer = jnp.einsum("bnjr,nrq->bjq", mixed, second, **wide).astype(x.dtype)
        return outer.reshape(*x.shape[:-1], -1)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        return take(self.dense(), ids, dtype)

    def dense(self) -> jax.Array:
        exact = lax.Precision.HIGHEST
        blocks = jnp.matmul(self.left, self.right, precision=exact)
        w = jnp.einsum("...nij,...npq->...ipjq", self.rules, blocks, precision=exact)
        *lead, i, p, j, q = w.shape
        return w.reshape(*lead, i * p, j * q)


@node
class Fusion:
    """Attention over the outputs of several adapters (arXiv:2005.00247, sec. 3.2).

    z_a = adapter_a(y, x); s = softmax_a(y W_query · z_a W_key / temperature); the result is Σ_a s_a z_a W_value.

    Attributes:
      adapters: A nodes, each called with (y, x).
      query: `[*L, D, D]`.
      key: `[*L, D, D]`.
      value: `[*L, D, D]`.
      temperature: `[*L]`.
    """

    adapters: tuple[Any, ...]
    query: jax.Array
    key: jax.Array
    value: jax.Array
    temperature: jax.Array

    def __call__(self, y: jax.Array, x: jax.Array) -> jax.Array:
        z = jnp.stack([adapter(y, x) for adapter in self.adapters], axis=-2)  # [..., A, D]
        scores = jnp.einsum(
            "...d,...ad->...a", product(y, self.query), product(z, self.key), preferred_element_type=jnp.float32
        )
        share = jax.nn.softmax(scores / self.temperature, axis=-1).astype(y.dtype)
        return product(jnp.einsum("...a,...ad->...d", share, z), self.value)

    def dense(self) -> jax.Array:
        refuse_merging(self)


def _shifted(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x + bias, the bias lifted to x's rank: ranks are never promoted silently."""
    return x + jnp.expand_dims(bias, range(x.ndim - 1)).astype(x.dtype)
