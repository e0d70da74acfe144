"""Codes of few bits for numbers in [-1, 1], and how blocks of a weight are rounded to them.

A code is a table of the values its numbers stand for; a block of weights is divided by its largest magnitude and every
weight rounded to the nearest value. Tables, ties and packing are those of bitsandbytes, so that a weight rounded here
is the weight that a QLoRA trained elsewhere had below it.

  nf4       4-bit NormalFloat (QLoRA, arXiv:2305.14314, app. E): quantiles of a normal distribution, zero among them.
  fp4       4-bit floating point with 2 exponent bits, a mantissa bit and a sign, over its largest value, 12.
  int8      the integers -127 … 127 over 127: the linear, symmetric 8-bit code of LLM.int8 (arXiv:2208.07339, eq. 1).
  dynamic8  8-bit dynamic tree code (arXiv:2110.02861, sec. 1.3): a sign, a decimal exponent, and the rest a fraction.

Letters: L leading (layer) axes, R rows, C columns; blocks lie along C.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["CODES", "bits", "decode", "encode", "normalized", "pack", "select", "unpack"]

# Quantiles of N(0, 1): Φ⁻¹ at 8 equal steps from 1/2 to 1 - δ for the positive values and at 7 for the negative ones,
# over the largest, with δ = (1/32 + 1/30)/2; in the digits that were published, which fix float32.
_NF4_NEGATIVE = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635)
_NF4_NEGATIVE += (-0.18477343022823334, -0.09105003625154495)
_NF4_POSITIVE = (0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224)
_NF4_POSITIVE += (0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)

# Magnitudes of fp4 times 192, by their three bits: the first is zero, the second its one subnormal.
_FP4_MAGNITUDES = np.array([0, 1, 128, 192, 64, 96, 32, 48], np.float32) / np.float32(192)


def _dynamic8() -> np.ndarray:
    """Zero, one, and ± 10^(e-6) times the middles of 2^e equal parts of [0.1, 1], for e = 0 … 6."""

    def middles(parts: int) -> np.ndarray:
        # The published table's last digits: a float32 step, counted from the nearer end, and each edge rounded once.
        step, i = float((np.float32(1) - np.float32(0.1)) / np.float32(parts)), np.arange(parts + 1)
        edges = np.where(i < (parts + 1) // 2, np.float32(0.1) + step * i, 1 - step * (parts - i)).astype(np.float32)
        return (edges[:-1] + edges[1:]) / 2

    positive = np.concatenate([np.float32(10.0 ** (e - 6)) * middles(2**e) for e in range(7)])
    return np.sort(np.concatenate([-positive, np.array([0, 1], np.float32), positive]))


CODES: dict[str, np.ndarray] = {
    "nf4": np.array([*_NF4_NEGATIVE, 0.0, *_NF4_POSITIVE], np.float32),
    "fp4": np.concatenate([_FP4_MAGNITUDES, -_FP4_MAGNITUDES]),
    "int8": np.arange(-127, 128, dtype=np.float32) / np.float32(127),
    "dynamic8": _dynamic8(),
}
"""What each number of a code stands for (of int8, each number from -127)."""


def bits(code: str) -> int:
    """The bits of one number of a code.

    Raises:
      ValueError: there is no such code.
    """
    if code not in CODES:
        raise ValueError(f"code={code!r} is not one of {sorted(CODES)}.")
    return 4 if len(CODES[code]) == 16 else 8


def _nearest(x: Any, sorted_values: np.ndarray) -> Any:
    """The index of the nearest value; the lower of two that are equally near."""
    middles = (sorted_values[1:] + sorted_values[:-1]) / 2
    if isinstance(x, np.ndarray):
        return np.searchsorted(middles, x).astype(np.uint8)
    if len(middles) < 16:  # one fused pass; a search compares with all at once, in memory
        return functools.reduce(jnp.add, [(x > middle).astype(jnp.uint8) for middle in middles])
    return jnp.searchsorted(jnp.asarray(middles), x).astype(jnp.uint8)


def encode(x: Any, code: str) -> Any:
    """Round numbers in [-1, 1] to a code: uint8, or int8 for "int8". NumPy in, NumPy out; JAX in, JAX out."""
    if code == "int8":
        return (x * np.float32(127)).round().astype(np.int8)
    if code == "dynamic8":
        # Like the CPU code of bitsandbytes: to the nearest of 2^16 numbers first, by which its table is looked up.
        return _nearest(
            ((x + np.float32(1)) * np.float32(32767.5)).round() / np.float32(32767.5) - np.float32(1), CODES[code]
        )
    if code != "fp4":
        return _nearest(x, CODES[code])
    order = np.argsort(_FP4_MAGNITUDES)
    magnitude = _nearest(abs(x), _FP4_MAGNITUDES[order])
    table = order.astype(np.uint8) if isinstance(x, np.ndarray) else jnp.asarray(order, jnp.uint8)
    # Of the two zeros, bitsandbytes gives the one with the other sign.
    negative = (x < 0) ^ ((magnitude == 0) & (x != 0))
    return table[magnitude] + negative.astype(np.uint8) * np.uint8(8)


def decode(codes: Any, code: str) -> jax.Array:
    """Return what codes stand for, float32."""
    if code == "int8":
        return codes.astype(jnp.float32) / 127
    # An index of 4 or 8 bits is always inside its table.
    return jnp.asarray(CODES[code]).at[codes].get(mode="promise_in_bounds")


def select(codes: jax.Array, code: str) -> jax.Array:
    """`decode` of a code of 4 bits without its table in memory: bit by bit, half of the values that are left.

    Args:
      codes: int32.
      code: of 4 bits.
    """
    values: list[Any] = [jnp.float32(value) for value in CODES[code]]
    for bit in range(4):
        set_ = (codes >> bit) & 1 == 1
        values = [jnp.where(set_, one, zero) for zero, one in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def normalized(w: Any, block: int) -> tuple[Any, Any]:
    """Divide each block of a weight by its largest magnitude.

    Args:
      w: `[*L, R, C]`, NumPy or JAX.
      block: the size of a block; divides C.

    Returns:
      Numbers in [-1, 1] of w's shape, and the magnitudes `[*L, R, C / block]`.
    """
    blocks = w.reshape(*w.shape[:-1], -1, block)
    absmax = abs(blocks).max(axis=-1, keepdims=True)
    scale = absmax + (absmax == 0).astype(absmax.dtype)  # a block of zeros is zeros over one
    return (blocks / scale).reshape(w.shape), absmax[..., 0]


def pack(codes: Any) -> Any:
    """Put two 4-bit numbers in a byte, `[…, C]` to `[…, C/2]`: the first of a pair in the high half."""
    return codes[..., ::2] << 4 | codes[..., 1::2]


def unpack(packed: Any) -> jax.Array:
    """Undo `pack`."""
    return jnp.stack([packed >> 4, packed & 15], axis=-1).reshape(*packed.shape[:-1], -1)
