"""Weights of few bits: nodes that are dequantised where they are read, one layer at a time.

Kept as rows `[*L, R, C]` with blocks along C, the order of checkpoints: of a kernel `[D, F]` the rows are its columns
(R = F outputs, C = D inputs, `transposed`), of an embedding table `[V, D]` they are its rows. So a block never crosses
a layer, an output or a table row; `jax.lax.scan` slices layers, indexing picks rows and experts, and a mesh may split
codes along both axes. Scales, an eighth of the codes' bytes or less, are copied along C, so that no mesh need respect
blocks.

No gradient reaches codes or scales.

Letters: L leading (layer) axes, R rows, C columns, N blocks in a row, G groups of scales, D input width, F output
width.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adaptlab import tree
from adaptlab.leaf import codes as coding
from adaptlab.leaf import halves
from adaptlab.leaf.weight import is_node, node, product

__all__ = ["Affine", "Quantized", "Scales", "array_axes", "is_quantized", "quantize"]

SCALE_GROUP = 256
"""How many scales share a scale of theirs."""

Axes = tuple[str | None, ...]

Array = Any
"""A JAX array on its device, a NumPy array on its way there, or (in a tree of axes) a tuple of names."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scales:
    """Scales that are themselves in 8 bits (double quantisation, arXiv:2305.14314, sec. 3).

    s = absmax · dynamic8[codes] + offset, in groups of 256 counted along the rows of one layer.

    Attributes:
      codes: uint8 `[*L, R, N]`.
      absmax: `[*L, G]`, G = ⌈R N / 256⌉.
      offset: `[*L]`, the mean of the layer's scales.
    """

    codes: Array
    absmax: Array
    offset: Array

    def dense(self) -> jax.Array:
        """The scales, `[*L, R, N]`."""
        shape = self.codes.shape[-2:]
        group = np.arange(shape[0] * shape[1]).reshape(shape) // SCALE_GROUP
        scale = jnp.take(self.absmax, group, axis=-1)
        return coding.decode(self.codes, "dynamic8") * scale + self.offset[..., None, None]


@node
class Quantized:
    """absmax · code[codes], with a scale for each block of a row (arXiv:2305.14314, eq. 1-4).

    Attributes:
      codes: `[*L, R, C/2]` uint8, two numbers of 4 bits in a byte; or 8-bit numbers `[*L, R, C]`.
      absmax: `[*L, R, N]`, or `Scales`.
      code: the name of the code, one of `adaptlab.leaf.codes.CODES`.
      transposed: whether the rows are the columns of the matrix that the node stands for.
    """

    codes: Array
    absmax: Array | Scales
    code: str = field(metadata={"static": True})
    transposed: bool = field(default=True, metadata={"static": True})

    def rows(self) -> jax.Array:
        """The rows, float32 `[*L, R, C]`."""
        codes = coding.unpack(self.codes) if coding.bits(self.code) == 4 else self.codes
        scales = self.absmax.dense() if isinstance(self.absmax, Scales) else self.absmax
        return lax.stop_gradient(coding.decode(codes, self.code) * _along(scales, codes.shape[-1]))

    def halves(self, dtype: Any) -> jax.Array | None:
        """The rows' even and odd columns, `[2, R, C/2]`, see `adaptlab.leaf.halves`; None if no byte has two."""
        scales = self.absmax.dense() if isinstance(self.absmax, Scales) else self.absmax
        if coding.bits(self.code) != 4 or self.codes.shape[-1] % scales.shape[-1]:
            return None

        def decode(numbers: jax.Array) -> jax.Array:
            return coding.select(numbers, self.code) * scales[..., None]

        return lax.stop_gradient(halves.halves(self.codes, scales.shape[-1], decode, dtype))

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        return _dot(x, self, transpose)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        scales = self.absmax.dense() if isinstance(self.absmax, Scales) else self.absmax
        return _take(replace(self, absmax=scales), ids, dtype)

    def dense(self) -> jax.Array:
        return _dense(self)

    def axes(self, names: Axes) -> Any:
        *lead, r, c = _row_axes(names, self.transposed)
        double = Scales((*lead, r, None), (*lead, None), tuple(lead))
        scales = double if isinstance(self.absmax, Scales) else (*lead, r, None)
        return replace(self, codes=(*lead, r, c), absmax=scales)


@node
class Affine:
    """scale · codes + minimum, both of them per block of a row: how GGUF files keep weights (Q4_0, Q4_1, Q8_0).

    Attributes:
      codes: `[*L, R, C/2]` uint8, two numbers 0 … 15 in a byte; or int8 `[*L, R, C]`.
      scale: float16 `[*L, R, N]`.
      minimum: float16 `[*L, R, N]`, or None for zero.
      transposed: whether the rows are the columns of the matrix that the node stands for.
    """

    codes: Array
    scale: Array
    minimum: Array | None
    transposed: bool = field(default=True, metadata={"static": True})

    def rows(self) -> jax.Array:
        """The rows, float32 `[*L, R, C]`."""
        codes = coding.unpack(self.codes) if self.codes.dtype == jnp.uint8 else self.codes
        # Exact whether or not the compiler fuses it: the product has 8 + 11 bits at most.
        w = codes.astype(jnp.float32) * _along(self.scale.astype(jnp.float32), codes.shape[-1])
        if self.minimum is not None:
            w = w + _along(self.minimum.astype(jnp.float32), codes.shape[-1])
        return lax.stop_gradient(w)

    def halves(self, dtype: Any) -> jax.Array | None:
        """The rows' even and odd columns, `[2, R, C/2]`, see `adaptlab.leaf.halves`; None if no byte has two."""
        if self.codes.dtype != jnp.uint8 or self.codes.shape[-1] % self.scale.shape[-1]:
            return None

        def decode(numbers: jax.Array) -> jax.Array:
            w = numbers.astype(jnp.float32) * self.scale.astype(jnp.float32)[..., None]
            return w if self.minimum is None else w + self.minimum.astype(jnp.float32)[..., None]

        return lax.stop_gradient(halves.halves(self.codes, self.scale.shape[-1], decode, dtype))

    def dot(self, x: jax.Array, transpose: bool) -> jax.Array:
        return _dot(x, self, transpose)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        return _take(self, ids, dtype)

    def dense(self) -> jax.Array:
        return _dense(self)

    def axes(self, names: Axes) -> Any:
        *lead, r, c = _row_axes(names, self.transposed)
        minimum = None if self.minimum is None else (*lead, r, None)
        return replace(self, codes=(*lead, r, c), scale=(*lead, r, None), minimum=minimum)


def _along(scales: jax.Array, columns: int) -> jax.Array:
    """Repeat each block's number over its columns. (On a mesh that splits columns, each device repeats its own.)"""
    return jnp.repeat(scales, columns // scales.shape[-1], axis=-1)


def _dot(x: jax.Array, weight: Any, transpose: bool) -> jax.Array:
    # Checkpointed, so that the backward pass keeps codes and dequantises again: as a residual of the product the float
    # weights of all layers would be kept, which is the memory that quantisation is to save.
    def read(x: jax.Array, weight: Any) -> jax.Array:
        over_columns = transpose != weight.transposed
        if halves.pay(x.dtype) and (w := weight.halves(x.dtype)) is not None:
            return halves.product(x, w, over_columns)
        return product(x, weight.rows(), over_columns)

    return jax.checkpoint(read)(x, weight)


def _take(weight: Any, ids: jax.Array, dtype: Any) -> jax.Array:
    if weight.transposed:  # a table row is a column here, and crosses all blocks
        return jnp.take(weight.dense(), ids, axis=0).astype(dtype)
    return jax.tree.map(lambda x: jnp.take(x, ids, axis=0), weight).rows().astype(dtype)


def _dense(weight: Any) -> jax.Array:
    return jnp.swapaxes(weight.rows(), -1, -2) if weight.transposed else weight.rows()


def _row_axes(names: Axes, transposed: bool) -> Axes:
    return (*names[:-2], names[-1], names[-2]) if transposed else names


def quantize(w: Any, code: str, *, block: int | None = 64, double: bool = False, transposed: bool = True) -> Quantized:
    """Round a weight to a code, block by block: absmax = max |block|, codes = the nearest to block / absmax.

    Args:
      w: `[*L, D, F]`, NumPy (then so is the node: nothing is put on a device) or JAX.
      code: one of `adaptlab.leaf.codes.CODES`.
      block: how many weights share a scale; None gives each row one (vector-wise, arXiv:2208.07339, sec. 3.1).
      double: quantise the scales too, see `Scales`.
      transposed: whether blocks run along the inputs D of each output (a kernel), or along rows of w (a table).

    Raises:
      ValueError: an unknown code, or a block that does not divide the row.
    """
    packed = coding.bits(code) == 4
    rows = w.swapaxes(-1, -2) if transposed else w
    columns = rows.shape[-1]
    size = columns if block is None else block
    if size < 1 or columns % size or (packed and columns % 2):
        fitting = [n for n in (16, 32, 64, 128, 256, columns) if columns % n == 0]
        raise ValueError(
            f"block={block} does not divide rows of {columns} (of shape {w.shape}); choose from {fitting}."
        )
    if w.ndim == 2 or not isinstance(w, np.ndarray):
        numbers, absmax = coding.normalized(rows, size)
        codes = coding.encode(numbers, code)
        codes = coding.pack(codes) if packed else codes
        return Quantized(codes, _quantize_scales(absmax) if double else absmax, code, transposed)
    # One layer at a time, so that the host never holds a second copy of all.
    layers = [quantize(one, code, block=block, double=double, transposed=transposed) for one in w]
    return jax.tree.map(lambda *x: np.stack(x), *layers)


def _quantize_scales(absmax: Any) -> Scales:
    xp: Any = np if isinstance(absmax, np.ndarray) else jnp
    *lead, r, n = absmax.shape
    size, group = r * n, min(SCALE_GROUP, r * n)
    flat = absmax.reshape(*lead, size)
    wide = np.float64 if xp is np else np.float32
    offset = xp.mean(flat, axis=-1, keepdims=True, dtype=wide).astype(np.float32)
    # Padding is no larger than any scale: it changes no group's absmax.
    centred = xp.pad(flat - offset, [(0, 0)] * len(lead) + [(0, -size % group)])
    numbers, scale = coding.normalized(centred[..., None, :], group)
    codes = coding.encode(numbers, "dynamic8")[..., 0, :size]
    return Scales(codes.reshape(absmax.shape), scale[..., 0, :], offset[..., 0])


def is_quantized(leaf: Any) -> bool:
    """Whether a leaf is a weight of few bits (use it as `is_leaf`)."""
    return isinstance(leaf, Quantized | Affine)


def array_axes(axes: Any, params: Any) -> Any:
    """Return the logical axes of every array of `params`, those inside quantised nodes too.

    Args:
      axes: the tree of axis-name tuples of the plain model.
      params: its weights, some of them quantised.
    """
    names = tree.flatten(axes, is_leaf=lambda x: isinstance(x, tuple))
    return tree.map_with_path(
        lambda path, x: x.axes(names[path]) if is_quantized(x) else names[path], params, is_leaf=is_node
    )
