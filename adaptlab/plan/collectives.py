"""The communication of a compiled program: which collectives, over which axes of the mesh, how often, how many bytes.

Counted in the program that runs, not in the one that was written, so that what a partitioner has added shows. A TPU's
compiler writes a reduce-scatter as a fused all-reduce of which every chip keeps a slice, splits an asynchronous
collective in a start, fusions that work meanwhile, and an end, and turns what crosses slices into messages between
hosts; each of them is one collective here.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaptlab.plan.hlo import Computation, Instruction, Module

__all__ = ["KINDS", "Collective", "collectives", "replica_groups", "totals"]

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
      kind: one of `KINDS`.
      axes: the mesh axes that its groups run along; () if it talks to nobody.
      size: devices in a group.
      shapes: of its results on one device, e.g. ("bf16[2048,512]",).
      runs: how often it runs in one call.
      bytes: what one device sends in one run by a ring: of V bytes in whole, V (n - 1)/n for an all-gather, a
        reduce-scatter or an all-to-all of n devices, twice that for an all-reduce, V for a permutation.
      crosses: whether a group has devices of several slices.
      group: the positions in the mesh of one of its groups.
      op_name: what it comes from.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    shapes: tuple[str, ...]
    runs: int
    bytes: float
    crosses: bool
    group: tuple[int, ...]
    op_name: str


def collectives(module: Module, mesh_shape: Mapping[str, int], slices: Sequence[int] | None = None) -> list[Collective]:
    """Return the collectives of a compiled program.

    Args:
      module: the program, see `parse_hlo`.
      mesh_shape: the sizes of the mesh's axes, the outermost first; partition p of the program is the p-th device.
      slices: of each device of the mesh, in order, the slice that it is in; None if there is one.
    """
    where = np.zeros(math.prod(mesh_shape.values()), int) if slices is None else np.asarray(slices)
    found = []
    for computation, one, runs in module.executed(fused=True):
        kind = _kind(computation, one)
        if kind == "send":
            found.append(_message(one, runs, mesh_shape, where))
        elif kind:
            found.append(_collective(kind, computation, one, runs, mesh_shape, where))
    return [one for one in found if one.size > 1]


def totals(found: Sequence[Collective]) -> list[dict[str, Any]]:
    """Return `{kind, axes, crosses_slices, count, bytes}` for each kind and axes, the most bytes first."""
    rows: dict[tuple, list[float]] = {}
    for one in found:
        row = rows.setdefault((one.kind, one.axes, one.crosses), [0, 0.0])
        row[0] += one.runs
        row[1] += one.runs * one.bytes
    ordered = sorted(rows.items(), key=lambda item: -item[1][1])
    return [
        {"kind": kind, "axes": list(axes), "crosses_slices": crosses, "count": int(count), "bytes": sent}
        for (kind, axes, crosses), (count, sent) in ordered
    ]


def _kind(computation: Computation, one: Instruction) -> str:
    kind = one.opcode.removesuffix("-start")
    if kind == "send" and "xla_megascale" in one.attributes:
        return "send"
    if kind not in KINDS:
        return ""
    if "chain_id=" in one.attributes:  # in flight while fusions work: told where it starts, and again in each of them
        started = any("AsyncCollectiveStart" in user.attributes for user in computation.users(one.name))
        return kind if started else ""
    return "reduce-scatter" if kind == "all-reduce" and _scattered(computation, one) else kind


def _scattered(computation: Computation, one: Instruction) -> bool:
    """Whether every device keeps a slice of this all-reduce: the fusion that is a reduce-scatter."""
    return "all-reduce-scatter" in computation.name and bool(computation.users(one.name))


def _collective(
    kind: str,
    computation: Computation,
    one: Instruction,
    runs: int,
    mesh_shape: Mapping[str, int],
    where: np.ndarray,
) -> Collective:
    groups = replica_groups(one.attributes, math.prod(mesh_shape.values()))
    group = max(groups, key=len)
    results = one.shapes
    if one.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        data = [s for s in one.shapes if s.dims]  # operands, results, and what the pair of start and done needs
        results = tuple(data[len(data) // 2 :])
    elif kind == "reduce-scatter" and one.opcode.startswith("all-reduce"):
        results = tuple(shape for user in computation.users(one.name) for shape in user.shapes[:1])
    whole = sum(s.bytes for s in results) * (len(group) if kind == "reduce-scatter" else 1)
    share = (len(group) - 1) / len(group)
    times = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)
    return Collective(
        kind,
        _axes(groups, mesh_shape),
        len(group),
        tuple(f"{s.dtype}[{','.join(map(str, s.dims))}]" for s in results),
        runs,
        whole * times,
        any(len(set(where[list(g)])) > 1 for g in groups),
        tuple(group),
        one.op_name,
    )


def _message(one: Instruction, runs: int, mesh_shape: Mapping[str, int], where: np.ndarray) -> Collective:
    """A message to other slices: the part of a collective that leaves through the data-centre network."""
    named = re.search(r'_xla_host_transfer_rendezvous="([a-z\-]+)', one.attributes)
    kind = named.group(1).rstrip("-") if named and named.group(1).rstrip("-") in KINDS else "all-reduce"
    inside = [g for g in range(len(where)) if _place(g, mesh_shape)[1:] == _place(0, mesh_shape)[1:]]
    shape = one.shapes[0]
    group = tuple(sorted({int(np.flatnonzero(where == s)[0]) for s in where} or inside))
    return Collective(
        kind,
        _axes([group], mesh_shape),
        len(group),
        (f"{shape.dtype}[{','.join(map(str, shape.dims))}]",),
        runs,
        float(shape.bytes),
        True,
        group,
        one.op_name,
    )


def _place(position: int, mesh_shape: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(position, tuple(mesh_shape.values())))


def _axes(groups: Sequence[Sequence[int]], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    varies = np.zeros(len(mesh_shape), bool)
    for group in groups:
        places = np.array(np.unravel_index(np.asarray(group), tuple(mesh_shape.values())))
        varies |= (places != places[:, :1]).any(axis=1)
    return tuple(axis for axis, moved in zip(mesh_shape, varies, strict=True) if moved)


def replica_groups(attributes: str, devices: int) -> list[tuple[int, ...]]:
    """Read the groups of a collective in any of the ways XLA writes them.

    As lists `{{0,1},{2,3}}`, as a reshaped and transposed count `[2,4]<=[4,2]T(1,0)`, as axes of a mesh
    `mesh['a'=2,'b'=4] {'b'}`, or as the pairs of a permutation, where a group is all that are reached from each other.

    Raises:
      ValueError: another way.

    >>> replica_groups("replica_groups=[2,2]<=[2,2]T(1,0)", 4)
    [(0, 2), (1, 3)]
    """
    if found := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes):
        return _cycles([tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)\}", found.group(1))])
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        groups, shape = _numbers(found.group(1)), _numbers(found.group(2))
        order = _numbers(found.group(3)) if found.group(3) else range(len(shape))
        ids = np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(groups)
        return [tuple(int(i) for i in group) for group in ids]
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? \{([^}]*)\}", attributes):
        return _along(found.group(1), found.group(2), found.group(3))
    if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes):
        listed = [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", found.group(1))]
        return [tuple(group) for group in listed] or [tuple(range(devices))]
    if "replica_groups=" in attributes:
        raise ValueError(f"cannot read the groups of {attributes[:200]!r}.")
    return [tuple(range(devices))]


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def _along(mesh: str, ids: str | None, axes: str) -> list[tuple[int, ...]]:
    """Groups along axes of a mesh, `'a'`, or along parts of them: `'a':(before)size`."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    dims: list[int] = []
    chosen: list[int] = []
    for name, size in sizes.items():
        split = next(((int(b), int(n)) for a, b, n in wanted if a == name and n), None)
        if split is None:
            chosen += [len(dims)] if any(a == name for a, _, _ in wanted) else []
            dims.append(size)
        else:
            before, part = split
            chosen.append(len(dims) + 1)
            dims += [before, part, size // (before * part)]
    positions = np.arange(math.prod(dims)) if ids is None else _listed(ids)
    rest = [axis for axis in range(len(dims)) if axis not in chosen]
    members = math.prod(dims[axis] for axis in chosen)
    grouped = positions.reshape(dims).transpose([*rest, *chosen]).reshape(-1, members)
    return [tuple(int(i) for i in group) for group in grouped]


def _listed(ids: str) -> np.ndarray:
    """Devices in an order of their own: listed, or as a reshaped and transposed count."""
    if found := re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", ids):
        shape = _numbers(found.group(1))
        order = _numbers(found.group(2)) if found.group(2) else range(len(shape))
        return np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(-1)
    return np.array(_numbers(ids))


def _cycles(pairs: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The devices that a permutation connects, as groups."""
    group: dict[int, set[int]] = {}
    for a, b in pairs:
        joined = group.get(a, {a}) | group.get(b, {b})
        for one in joined:
            group[one] = joined
    return sorted({tuple(sorted(members)) for members in group.values()})
