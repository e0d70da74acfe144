"""What lies in a chip's memory when it holds most, by kind: from the compiler's own assignment of buffers.

XLA writes the assignment down before it refuses a program that does not fit, so a refused step is told apart like one
that fits.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from adaptlab.plan.hlo import Instruction, Module

__all__ = ["KINDS", "Buffer", "Memory", "read_memory"]

KINDS = ("base", "delta", "optimiser", "batch", "activations", "temporaries", "program")
"""base: what is adapted; delta: what trains; activations: results of the forward pass that wait for the backward pass;
temporaries: all else a step needs for a while, gradients among it, and what the allocator leaves unused in between;
program: the instructions."""

_ARGUMENTS = {"base": "base", "state.delta": "delta", "state.opt_state": "optimiser", "batch": "batch"}


class Buffer(NamedTuple):
    """One of the largest buffers.

    Attributes:
      bytes: its size on one chip, tiles' padding included.
      what: the argument, or the operation that makes it.
      shape: on one chip, e.g. "bf16[4,512,256]".
      kind: one of `KINDS`.
    """

    bytes: int
    what: str
    shape: str
    kind: str


class Memory(NamedTuple):
    """Of one chip.

    Attributes:
      kinds: bytes by kind, all of `KINDS`.
      largest: what is largest at the peak, the largest first.
    """

    kinds: Mapping[str, int]
    largest: Sequence[Buffer]

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(self.kinds.values())


def read_memory(folder: Path, module: Module, *, code: int = 0, beyond: int = 0, count: int = 8) -> Memory:
    """Read what XLA wrote of a program (`xla_dump_to`).

    Args:
      folder: where to.
      module: the program.
      code: the bytes of its instructions.
      beyond: results that are not written over arguments.
      count: how many buffers to name.

    Raises:
      ValueError: the folder has no buffer assignment.
    """
    files = sorted(folder.glob("*after_optimizations-buffer-assignment.txt"), key=lambda path: path.stat().st_size)
    if not files:
        raise ValueError(f"{folder}: no buffer assignment; XLA was to write one there.")
    assignment = files[-1].read_text()
    ranges = files[-1].with_name(files[-1].name.replace("-buffer-assignment", "-live-range"))
    peak = _peak(ranges.read_text()) if ranges.exists() else []
    instructions = {i.name: i for c in module.computations.values() for i in c.instructions.values()}
    entry = module.computations[module.entry].instructions
    parameters = {int(i.inside): i for i in entry.values() if i.opcode == "parameter"}
    kinds = dict.fromkeys(KINDS, 0) | {"program": code, "temporaries": _heap(assignment) + beyond}
    found: list[Buffer] = []
    for size, number in re.findall(r"allocation \d+: size (\d+), parameter (\d+)", assignment):
        one = parameters.get(int(number))
        kind = _argument(one)
        kinds[kind] += int(size)
        if one is not None:
            found.append(Buffer(int(size), one.op_name or one.name, _said(one), kind))
    arguments = {one.name for one in parameters.values()}
    for name, size in peak:
        one = instructions.get(name)
        if name in arguments:
            continue
        kind = "activations" if one is not None and _forward(one.op_name) else "temporaries"
        if kind == "activations":
            moved = min(size, kinds["temporaries"])
            kinds["activations"] += moved
            kinds["temporaries"] -= moved
        found.append(Buffer(size, (one.op_name if one else "") or name, _sized(one, size), kind))
    return Memory(kinds, sorted(found, key=lambda b: -b.bytes)[:count])


def _peak(text: str) -> list[tuple[str, int]]:
    """The names and bytes of the buffers that live at the peak."""
    start = re.search(r"Live ranges at \d+ \(peak\):\n", text)
    if start is None:
        return []
    lines = re.findall(r"^    ([\w.\-]+)\{[\d,]*\}: (\d+) bytes", text[start.end() :].split("Stack trace")[0], re.M)
    return [(name, int(size)) for name, size in lines]


def _heap(assignment: str) -> int:
    """What is allocated for all that is neither argument nor constant, in main memory (color 0 is not named)."""
    sizes = re.findall(r"^allocation \d+: size (\d+), (?:color 0, )?preallocated-temp", assignment, re.M)
    return sum(map(int, sizes))


def _argument(one: Instruction | None) -> str:
    name = one.op_name if one is not None else ""
    return next((kind for start, kind in _ARGUMENTS.items() if name.startswith(start)), "temporaries")


def _forward(op_name: str) -> bool:
    """Whether an operation belongs to the forward pass, as JAX names it: inside jvp, not its transpose."""
    return "jvp(" in op_name and "transpose(" not in op_name


def _said(one: Instruction) -> str:
    return f"{one.shapes[0].dtype}[{','.join(map(str, one.shapes[0].dims))}]"


def _sized(one: Instruction | None, size: int) -> str:
    """The array of a result that is as large as this (tiles may pad it), or nothing."""
    fitting = [s for s in one.shapes if size >= s.bytes > size // 2] if one else []
    return f"{fitting[0].dtype}[{','.join(map(str, fitting[0].dims))}]" if fitting else ""
