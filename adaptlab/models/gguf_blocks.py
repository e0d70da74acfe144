"""Quantised tensors of GGUF files, as they lie there: block by block, without another rounding."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adaptlab import leaf
from adaptlab.gguf import TensorInfo
from adaptlab.leaf import codes as coding
from adaptlab.models.weights import Entry

__all__ = ["deinterleave", "raw_rows", "stored_weight"]

_BLOCK = 32


class _Layout(NamedTuple):
    """One type of block: its name, the float16 numbers in front, and the bits of a weight."""

    name: str
    header: int
    bits: int


# By ggml's type number. A weight is d q + m (Q4_1), d (q - 8) (Q4_0) or d q (Q8_0).
_LAYOUTS = {2: _Layout("Q4_0", 1, 4), 3: _Layout("Q4_1", 2, 4), 8: _Layout("Q8_0", 1, 8)}


def raw_rows(data: np.ndarray, tensor: TensorInfo, block: int, block_bytes: int) -> np.ndarray:
    """Return a tensor's bytes, `[*rows, bytes of a row]`."""
    row_bytes = tensor.shape[-1] // block * block_bytes
    raw = data[tensor.start : tensor.start + math.prod(tensor.shape[:-1]) * row_bytes]
    return raw.reshape(*tensor.shape[:-1], row_bytes)


def deinterleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of rotary rows, (0, K/2, 1, K/2+1, …) within each head."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def stored_weight(
    data: np.ndarray, tensors: Mapping[str, TensorInfo], entry: Entry, names: Sequence[str]
) -> leaf.Affine:
    """Return the weight node of a leaf: codes, scales and minima of the file, in the order of our rows.

    Args:
      data: the file's bytes.
      tensors: where they lie.
      entry: the leaf's row of the family's table.
      names: its tensors, one per layer; or the one of a leaf without layers.

    Raises:
      ValueError: a tensor of another type, with the types that are read.
    """
    for name in names:
        if tensors[name].type not in _LAYOUTS or tensors[name].type != tensors[names[0]].type:
            known = [layout.name for layout in _LAYOUTS.values()]
            raise ValueError(
                f"quantize='stored': {name} is of ggml type {tensors[name].type}; blocks of {known} are kept, and "
                f"of one type in all layers. Narrow base.quantize.select, or choose another scheme."
            )
    layers = [_one(data, tensors[name], entry) for name in names]
    parts = [
        np.stack(part) if "{}" in entry.gguf else part[0] for part in zip(*layers, strict=True) if part[0] is not None
    ]
    return leaf.Affine(parts[0], parts[1], parts[2] if len(parts) > 2 else None, entry.transpose)


def _one(data: np.ndarray, tensor: TensorInfo, entry: Entry) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    layout = _LAYOUTS[tensor.type]
    raw = raw_rows(data, tensor, _BLOCK, layout.header * 2 + _BLOCK * layout.bits // 8)
    raw = deinterleave(raw, entry.rotary_heads) if entry.rotary_heads else raw
    blocks = raw.reshape(*raw.shape[:-1], tensor.shape[-1] // _BLOCK, -1)
    head, body = blocks[..., : layout.header * 2], blocks[..., layout.header * 2 :]
    numbers = np.ascontiguousarray(head).view(np.float16)
    scale, minimum = numbers[..., 0].copy(), None
    if layout.bits == 8:
        codes = np.ascontiguousarray(body).view(np.int8)
    else:
        # A byte holds weights i and i + 16 of its block, the first in its low half; a pair of neighbours here.
        codes = coding.pack(np.concatenate([body & 15, body >> 4], axis=-1))
        minimum = numbers[..., 1].copy() if layout.header == 2 else _eight(scale)
    return codes.reshape(*codes.shape[:-2], -1), scale, minimum


def _eight(scale: np.ndarray) -> np.ndarray:
    """-8 d: exact in float16, but for scales so large that no weight has them."""
    return np.float16(-8) * scale
