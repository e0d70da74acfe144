"""A compiled program as XLA prints it (HLO text): its instructions, and how often each of them runs.

XLA's own cost analysis counts the body of a loop once, whatever its length; a stack of scanned layers is such a loop.
Here every computation has the number of its runs in one call of the program, from the loops' trip counts.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

__all__ = ["Computation", "Instruction", "Module", "Shape", "parse_hlo"]

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "token": 0, "opaque": 0}


class Shape(NamedTuple):
    """One array.

    Attributes:
      dtype: XLA's name, e.g. "bf16".
      dims: its sizes.
      space: the memory space of its layout: 0 is the device's main memory; on a TPU 1 is the vector memory on the chip.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Its size without the padding of tiles."""
        return self.elements * _bits(self.dtype) // 8


class Instruction(NamedTuple):
    """One line.

    Attributes:
      name: unique in its computation.
      opcode: e.g. "fusion".
      shapes: of its result, the arrays of a tuple one after the other.
      operands: the names of its operands.
      inside: what stands in the brackets: the operands, or the value of a constant.
      attributes: the rest of the line.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str

    @property
    def op_name(self) -> str:
        """The operation of the traced program it comes from, e.g. "jit(step)/jvp(_Llama)/while"; may be empty."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1).replace("\\'", "'") if found else ""

    def called(self, *names: str) -> list[str]:
        """The computations that its attributes of these names call."""
        found: list[str] = []
        for name in names:
            for group in re.findall(rf"\b{name}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes):
                found += re.findall(r"[\w.\-]+", group)
        return found


class Computation(NamedTuple):
    """A function of the program.

    Attributes:
      name: what it is called by.
      instructions: by name, in order.
      root: the name of the one whose value it returns.
    """

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    def users(self, name: str) -> list[Instruction]:
        """The instructions that read one."""
        return [i for i in self.instructions.values() if name in i.operands]


class Module(NamedTuple):
    """A compiled program.

    Attributes:
      computations: by name.
      entry: the name of the one that runs.
      runs: `{computation: how often it runs in one call}`, of those that do work of their own and of those that are
        fused into one instruction; not of the scalar functions of reductions.
      fused: the names of those that run inside an instruction, without touching memory between their own.
      unknown: the loops whose trip count could not be read; they are counted once.
    """

    computations: Mapping[str, Computation]
    entry: str
    runs: Mapping[str, int]
    fused: frozenset[str]
    unknown: tuple[str, ...]

    def executed(self, *, fused: bool) -> Iterator[tuple[Computation, Instruction, int]]:
        """Yield `(its computation, instruction, runs)`, of fused computations too or not."""
        for name, times in self.runs.items():
            if times and (fused or name not in self.fused):
                computation = self.computations[name]
                for instruction in computation.instructions.values():
                    yield computation, instruction, times


def parse_hlo(text: str) -> Module:
    """Read what `jax.stages.Compiled.as_text()` returns.

    Raises:
      ValueError: it has no entry computation.
    """
    computations, entry = {}, ""
    name, lines = "", []
    for line in text.splitlines():
        if not line[:1].isspace() and line.endswith("{") and "->" in line:
            header = line.removeprefix("ENTRY ")
            name, lines = header.lstrip("%").split(" ", 1)[0].split("(")[0], []
            entry = name if line.startswith("ENTRY ") else entry
        elif line.startswith("}") and name:
            computations[name] = _computation(name, lines)
            name = ""
        elif name and " = " in line:
            lines.append(line)
    if not entry:
        raise ValueError("this text has no ENTRY computation: it is not HLO of a compiled program.")
    return _counted(computations, entry)


def _computation(name: str, lines: list[str]) -> Computation:
    instructions, root = {}, ""
    for line in lines:
        one = _instruction(line)
        instructions[one.name] = one
        root = one.name if line.lstrip().startswith("ROOT ") else root
    return Computation(name, instructions, root or next(reversed(instructions), ""))


def _instruction(line: str) -> Instruction:
    left, right = re.sub(r"/\*.*?\*/", "", line).strip().split(" = ", 1)
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    kind, rest = right[:end], right[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    inside = rest[start + 1 : stop]
    return Instruction(
        left.removeprefix("ROOT ").lstrip("%"),
        rest[:start],
        _shapes(kind),
        tuple(re.findall(r"%([\w.\-]+)", inside)),
        inside,
        rest[stop + 1 :],
    )


def _closing(text: str, start: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced brackets in HLO: {text[:200]!r}")


@functools.lru_cache(4096)
def _shapes(text: str) -> tuple[Shape, ...]:
    found = re.findall(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", text)
    return tuple(Shape(d, tuple(int(n.lstrip("<=")) for n in s.split(",") if n), _space(l)) for d, s, l in found)


def _space(layout: str) -> int:
    found = re.search(r"S\((\d+)\)", layout)
    return int(found.group(1)) if found else 0


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits.group(1)) if digits else 0


def _counted(computations: Mapping[str, Computation], entry: str) -> Module:
    runs: Counter[str] = Counter()
    fused, unknown = set(), []

    def visit(name: str, times: int, inside: bool) -> None:
        runs[name] += times
        if inside:
            fused.add(name)
        for one in computations[name].instructions.values():
            if one.opcode == "while":
                trips = _trips(one, computations[name], computations)
                if trips is None:
                    unknown.append(one.name)
                for part in one.called("body", "condition"):
                    visit(part, times * (1 if trips is None else trips), inside)
            elif one.opcode in ("fusion", "call", "async-start", "conditional"):
                below = one.called("calls", "to_apply", "branch_computations", "true_computation", "false_computation")
                for part in below:
                    visit(part, times, inside or one.opcode == "fusion")

    visit(entry, 1, False)
    return Module(computations, entry, dict(runs), frozenset(fused), tuple(unknown))


def _trips(loop: Instruction, around: Computation, computations: Mapping[str, Computation]) -> int | None:
    """How often a loop runs: XLA says it, or its condition compares a counter with a constant."""
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(found.group(1))
    condition = computations[loop.called("condition")[0]]
    fusions = [computations[name] for i in condition.instructions.values() for name in i.called("calls")]
    inside = [i for one in (condition, *fusions) for i in one.instructions.values()]
    bounds = [int(i.inside) for i in inside if i.opcode == "constant" and re.fullmatch(r"-?\d+", i.inside)]
    compares = [i.attributes for i in inside if i.opcode == "compare"]
    if len(bounds) != 1 or len(compares) != 1 or not re.search("direction=L[TE]", compares[0]):
        return None
    index = _counter(condition)
    span = bounds[0] + ("direction=LE" in compares[0]) - _first(loop, around, index)
    return -(-span // _stride(computations[loop.called("body")[0]], index))


def _counter(condition: Computation) -> int | None:
    """Which element of a loop's state its condition reads, if it is one."""
    reads = [i for i in condition.instructions.values() if i.opcode == "get-tuple-element" and i.shapes[0].dims == ()]
    index = re.search(r"index=(\d+)", reads[0].attributes) if len(reads) == 1 else None
    return int(index.group(1)) if index else None


def _stride(body: Computation, index: int | None) -> int:
    """By how much the counter grows: 1, but 2 for a product in windows whose body does two of them."""
    end = body.instructions[body.root]
    if index is None or end.opcode != "tuple":
        return 1
    grown = body.instructions[end.operands[index]]
    added = [body.instructions[name] for name in grown.operands if grown.opcode == "add"]
    steps = [int(i.inside) for i in added if i.opcode == "constant" and re.fullmatch(r"\d+", i.inside)]
    return max(1, steps[0]) if len(steps) == 1 else 1


def _first(loop: Instruction, around: Computation, index: int | None) -> int:
    """Where the counter of a loop starts: 0, but for a loop whose first turn was taken out of it."""
    start = around.instructions.get(loop.operands[0])
    if index is None or start is None or start.opcode != "tuple":
        return 0
    one = around.instructions[start.operands[index]]
    while one.opcode in ("copy", "copy-start", "copy-done", "bitcast"):
        one = around.instructions[one.operands[0]]
    return int(one.inside) if one.opcode == "constant" and re.fullmatch(r"-?\d+", one.inside) else 0
