"""A float weight that is read as if it were quantised, so that it is trained for that."""

from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adaptlab.leaf.quantized import quantize
from adaptlab.leaf.weight import Weight, dense, node, product

__all__ = ["FakeQuantized"]


def rounded(w: jax.Array, code: str, block: int | None, transposed: bool) -> jax.Array:
    """The weight, quantised and back; its derivative is the identity, and so all higher ones are zero."""
    fixed = lax.stop_gradient(w)
    # w - fixed is exactly zero. (Not a custom_jvp: inside a scan, its rule is lost in the forward pass that a
    # Hessian-vector product differentiates.)
    return quantize(fixed, code, block=block, transposed=transposed).dense().astype(w.dtype) + (w - fixed)


@node
class FakeQuantized:
    """Q(w), where Q rounds to a code and back, and dQ/dw = 1 (straight-through, arXiv:1308.3432, sec. 4).

    Gradients are those of the loss at Q(w) with respect to Q(w), given to w; Hessian-vector products likewise. As each
    block is divided by its own largest magnitude, no weight is out of range and none is clipped.

    Attributes:
      w: the weight below, a float array `[*L, D, F]` or another node.
      code: one of `adaptlab.leaf.codes.CODES`.
      block: weights per scale, or None for one scale per row.
      transposed: whether blocks run along the inputs of each output, see `adaptlab.leaf.quantize`.
    """

    w: Weight
    code: str = field(metadata={"static": True})
    block: int | None = field(metadata={"static": True})
    transposed: bool = field(default=True, metadata={"static": True})

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        # Checkpointed: rounded again in the backward pass, or the rounded copies of all layers would be kept for it.
        return jax.checkpoint(lambda x, node: product(x, node.dense(), transpose))(x, self)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        return jnp.take(self.dense(), ids, axis=0).astype(dtype)

    def dense(self) -> jax.Array:
        return rounded(dense(self.w), self.code, self.block, self.transposed)
