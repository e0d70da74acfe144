"""Convolutions by whatever stands where a model has a kernel.

Letters: L leading (layer) axes, H and W of an image, h and w of a kernel, C input and O output channels, R rank.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adaptlab.leaf.weight import Weight, dense, node, product

__all__ = ["LowRankConv", "Padding", "conv"]

Padding = str | Sequence[tuple[int, int]]
"""`"SAME"`, `"VALID"`, or (before, after) of each spatial axis."""


def conv(
    x: jax.Array,
    leaf: Weight,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    dilation: tuple[int, int] = (1, 1),
) -> jax.Array:
    """Return the convolution of images with the kernel that the leaf stands for.

    Args:
      x: `[B, H, W, C]`. Its dtype is the compute dtype, as in `dot`.
      leaf: an array `[h, w, C, O]` or a node that stands for one. Nodes made for matrices are densified.
      strides: of the two spatial axes.
      padding: see `Padding`.
      dilation: distance between the kernel's elements, on the two spatial axes.

    Returns:
      `[B, H', W', O]`, in x's dtype.
    """
    if isinstance(leaf, LowRankConv):
        return leaf.conv(x, strides, padding, dilation)
    y = lax.conv_general_dilated(
        x,
        dense(leaf).astype(x.dtype),
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.astype(x.dtype)


@node
class LowRankConv:
    """W + scale · A B for a convolution's kernel: A a convolution to R channels, B one of size 1 to all of them.

    As matrices of the taps and input channels by the output channels, `[hwC, O]`, this is LoRA (arXiv:2106.09685).

    Attributes:
      w: the weight below, an array `[*L, h, w, C, O]` or another node.
      a: `[*L, h, w, C, R]`.
      b: `[*L, R, O]`.
      scale: `[*L]`.
    """

    w: Weight
    a: jax.Array
    b: jax.Array
    scale: jax.Array

    def conv(self, x: jax.Array, strides: Any, padding: Any, dilation: Any) -> jax.Array:
        options = {"strides": strides, "padding": padding, "dilation": dilation}
        side = product(conv(x, self.a, **options), self.b)
        return conv(x, self.w, **options) + side * self.scale.astype(side.dtype)

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        raise TypeError("A LowRankConv stands for a convolution's kernel: read it by leaf.conv.")

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        raise TypeError("A LowRankConv stands for a convolution's kernel: read it by leaf.conv.")

    def dense(self) -> jax.Array:
        w = dense(self.w)
        side = jnp.einsum("...hwcr,...ro->...hwco", self.a, self.b, precision=lax.Precision.HIGHEST)
        return w + (self.scale[..., None, None, None, None] * side).astype(w.dtype)
