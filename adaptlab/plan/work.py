"""What one chip does in a step, read off its compiled program: matrix products, and traffic of its main memory.

A matrix product of M × K by K × N is 2 M K N operations. Traffic is what every instruction reads and writes of buffers
in main memory; what is fused passes its numbers on without touching it, a slice of a stacked weight is read as the
slice it is, and an update in place writes what it updates. On a TPU, buffers that the compiler has put in the vector
memory count as nothing there; the copies to and from it count.
"""

import math
import re
from typing import NamedTuple

from adaptlab.plan.hlo import Computation, Instruction, Module, Shape

__all__ = ["Work", "work"]

_FREE = {
    *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "add-dependency"),
    *("while", "conditional", "call", "after-all", "partition-id", "replica-id", "domain", "copy-done", "slice-done"),
    *("all-gather-done", "all-reduce-done", "collective-permute-done"),
    *("async-start", "async-update", "async-done"),  # what they call is counted by itself
}
_PASSES = {"high": 3, "highest": 6}
"""A float32 product on units that multiply bfloat16 takes so many passes where such a precision is asked for."""


class Work(NamedTuple):
    """Of one chip, in one step.

    Attributes:
      flops: of matrix products.
      passes: the same, float32 products of high precision counted as often as the units must run.
      bytes: read from and written to main memory.
      unseen: custom calls with matrix products that the text does not tell; they are counted as nothing.
    """

    flops: float
    passes: float
    bytes: float
    unseen: tuple[str, ...]


def work(module: Module) -> Work:
    """Count what one call of a compiled program does on each device."""
    flops = passes = moved = 0.0
    unseen = []
    for computation, one, runs in module.executed(fused=True):
        if one.opcode in ("dot", "convolution"):
            here = _dot(computation, one) if one.opcode == "dot" else _convolution(computation, one)
            flops += runs * here
            passes += runs * here * _passes(one)
        elif one.opcode == "custom-call":
            told = re.search(r'"cost_estimate":\{"flops":"?(\d+)', one.attributes)
            flops += runs * int(told.group(1)) if told else 0
            passes += runs * int(told.group(1)) if told else 0
            if not told and "tpu_custom_call" in one.attributes:
                unseen.append(one.name)
        if computation.name not in module.fused:
            moved += runs * _traffic(module, computation, one)
    return Work(flops, passes, moved, tuple(unseen))


def _passes(one: Instruction) -> int:
    found = re.search(r"operand_precision=\{(\w+)", one.attributes)
    return _PASSES.get(found.group(1), 1) if found else 1


def _shape(computation: Computation, name: str) -> Shape:
    return computation.instructions[name].shapes[0]


def _dot(computation: Computation, one: Instruction) -> float:
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
    lhs = _shape(computation, one.operands[0])
    contracted = [lhs.dims[int(d)] for d in found.group(1).split(",") if d] if found else []
    return 2.0 * math.prod(contracted) * one.shapes[0].elements


def _convolution(computation: Computation, one: Instruction) -> float:
    """2 · batch · outputs · inputs per group · the pairs of an output and a window position that meet an input.

    A TPU writes every matrix product as a convolution; a batch of them has its batch axes as dilated spatial ones.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    if labels is None:
        return 0.0
    lhs, rhs = (_shape(computation, name) for name in one.operands[:2])
    left, right, out = labels.groups()
    window = _window(one.attributes)
    total = 2.0 * rhs.dims[right.index("i")] * one.shapes[0].dims[out.index("f")] * one.shapes[0].dims[out.index("b")]
    for axis in sorted(set(left) - set("bf")):
        sizes = (lhs.dims[left.index(axis)], rhs.dims[right.index(axis)], one.shapes[0].dims[out.index(axis)])
        total *= _pairs(*sizes, **{key: values[int(axis)] for key, values in window.items()})
    return total


def _window(attributes: str) -> dict[str, list[tuple[int, int]]]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in found.group(1).split()) if found else {}
    known = ("stride", "pad", "lhs_dilate", "rhs_dilate")
    pairs = {
        k: [tuple(int(n) for n in one.split("_")) for one in v.split("x")] for k, v in fields.items() if k in known
    }
    return {k: [(v[0], v[-1]) for v in values] for k, values in pairs.items()}


def _pairs(
    size: int,
    window: int,
    outputs: int,
    stride: tuple[int, int] = (1, 1),
    pad: tuple[int, int] = (0, 0),
    lhs_dilate: tuple[int, int] = (1, 1),
    rhs_dilate: tuple[int, int] = (1, 1),
) -> int:
    """How many pairs of an output and a window position fall on an input, not on padding or between dilated ones."""
    if window == 1 and stride[0] == 1 and lhs_dilate[0] == 1:
        return outputs
    dilated, count = (size - 1) * lhs_dilate[0] + 1, 0
    for position in range(window):
        # output o meets index o · stride + position · dilation - pad, which must be a multiple of lhs_dilate
        shift = position * rhs_dilate[0] - pad[0]
        first = max(0, -(-(0 - shift) // stride[0]))
        last = min(outputs - 1, (dilated - 1 - shift) // stride[0])
        step = lhs_dilate[0] // math.gcd(lhs_dilate[0], stride[0])
        start = next((o for o in range(first, first + step) if (o * stride[0] + shift) % lhs_dilate[0] == 0), None)
        count += 0 if start is None or start > last else (last - start) // step + 1
    return count


def _traffic(module: Module, computation: Computation, one: Instruction) -> int:
    """The bytes that an instruction reads from and writes to main memory."""
    if one.opcode in _FREE or (one.opcode == "custom-call" and "tpu_custom_call" not in one.attributes):
        return 0  # other custom calls allocate, or name what is there
    arrays = [computation.instructions[name].shapes for name in one.operands if name in computation.instructions]
    if one.opcode in ("copy-start", "slice-start"):  # its result holds its operand, too
        result = one.shapes[0] if one.opcode == "copy-start" else one.shapes[-2 if len(one.shapes) > 2 else -1]
        spaces = [result.space] + [s.space for shapes in arrays for s in shapes[:1]]
        return result.bytes * sum(space == 0 for space in spaces)
    if one.opcode in ("slice", "dynamic-slice", "gather"):
        read = one.shapes[0].bytes if arrays and arrays[0] and arrays[0][0].space == 0 else 0
        return read + _written(one.shapes)
    if one.opcode == "dynamic-update-slice":
        return 2 * _written(arrays[1])
    if one.opcode == "fusion":
        (name,) = one.called("calls")
        inner = module.computations[name]
        reads = sum(_read(module, inner, index, shapes) for index, shapes in enumerate(arrays))
        return reads + _fusion_writes(inner, one)
    shapes = one.shapes if not one.opcode.endswith("-start") else one.shapes[: max(1, len(one.shapes) // 2)]
    return _written(shapes) + sum(_written(s) for s in arrays)


def _written(shapes: tuple[Shape, ...]) -> int:
    return sum(s.bytes for s in shapes if s.space == 0)


def _read(module: Module, inner: Computation, index: int, shapes: tuple[Shape, ...]) -> int:
    """What a fusion reads of an operand in main memory: all of it, or the slices that it takes."""
    whole = _written(shapes)
    name = next((i.name for i in inner.instructions.values() if i.opcode == "parameter" and int(i.inside) == index), "")
    return min(whole, _used(module, inner, name, whole)) if whole and name else whole


def _used(module: Module, inner: Computation, name: str, whole: int) -> int:
    total = 0
    for user in inner.users(name):
        if user.opcode in ("dynamic-slice", "gather", "slice") and user.operands[0] == name:
            total += user.shapes[0].bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue  # in place: what is there is not read
        elif user.opcode == "bitcast":
            total += _used(module, inner, user.name, whole)
        elif user.opcode == "fusion":  # fused again
            below = module.computations[user.called("calls")[0]]
            for index in (i for i, operand in enumerate(user.operands) if operand == name):
                total += _read(module, below, index, (Shape("u8", (whole,)),))
        else:
            return whole
    return total


def _fusion_writes(inner: Computation, one: Instruction) -> int:
    """What a fusion writes to main memory: its results, or the updates of what it updates in place."""
    root = inner.instructions[inner.root]
    parts = [inner.instructions[n] for n in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for part, shape in zip(parts, one.shapes, strict=False):
        while part.opcode == "bitcast":
            part = inner.instructions[part.operands[0]]
        updated = part.opcode == "dynamic-update-slice"
        size = inner.instructions[part.operands[1]].shapes[0].bytes if updated else shape.bytes
        total += min(size, shape.bytes) if shape.space == 0 else 0
    return total
