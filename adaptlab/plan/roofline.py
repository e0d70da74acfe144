"""How long a step takes at best, and what it is limited by (the roofline model, doi:10.1145/1498765.1498785).

Four times, each as if nothing else took any: matrix products at the chip's peak, traffic of main memory at its
bandwidth, collectives over the interconnect, and what crosses slices over the data-centre network. The step takes the
longest of them if all overlap perfectly: no program is faster, and most are slower. The other extreme, communication
that overlaps with nothing, is given beside it.

A ring over a dimension of the torus that closes sends both ways at once; over an open one, or a part of one, it has one
direction. A group that spans several dimensions uses the links of all.
"""

from collections.abc import Sequence
from typing import NamedTuple

from adaptlab.plan.chips import Chip
from adaptlab.plan.collectives import Collective

__all__ = ["Roofline", "group_bandwidth", "roofline"]


class Roofline(NamedTuple):
    """Seconds a step.

    Attributes:
      compute: matrix products.
      memory: traffic of the chip's memory.
      interconnect: collectives inside of slices.
      network: collectives across slices.
    """

    compute: float
    memory: float
    interconnect: float
    network: float

    @property
    def step(self) -> float:
        """If all of it overlaps."""
        return max(self)

    @property
    def serial(self) -> float:
        """If no communication overlaps with anything."""
        return max(self.compute, self.memory) + self.interconnect + self.network

    @property
    def limit(self) -> str:
        """The name of the longest."""
        return max(self._asdict(), key=lambda name: self._asdict()[name])


def roofline(
    chip: Chip,
    *,
    passes: float,
    moved: float,
    found: Sequence[Collective],
    coordinates: Sequence[tuple[int, ...]],
    shape: Sequence[int],
) -> Roofline:
    """Return the times of a step.

    Args:
      chip: what it runs on.
      passes: operations of one chip, see `adaptlab.plan.work.Work`.
      moved: bytes of one chip's memory traffic.
      found: the collectives.
      coordinates: of the chips, in the mesh's order.
      shape: of the slice.
    """
    interconnect = network = 0.0
    for one in found:
        sent = one.runs * one.bytes
        if one.crosses:
            network += sent / chip.dcn_bandwidth
        else:
            group = [coordinates[p] for p in one.group]
            interconnect += sent * _hops(one, group) / group_bandwidth(chip, group, shape, one.kind)
    return Roofline(passes / chip.peak, moved / chip.hbm_bandwidth, interconnect, network)


def group_bandwidth(
    chip: Chip, group: Sequence[tuple[int, ...]], shape: Sequence[int], kind: str = "all-gather"
) -> float:
    """Return the bytes per second that each chip of a group sends to the others of it."""
    links = 0
    for dimension, size in enumerate(shape):
        extent = len({place[dimension] for place in group})
        closed = extent == size and size % chip.wraps == 0
        links += 0 if extent == 1 else 2 if closed else 1
    if kind == "collective-permute":
        links = 1
    return chip.link_bandwidth * max(links, 1)


def _hops(one: Collective, group: Sequence[tuple[int, ...]]) -> float:
    """How far the bytes of an all-to-all travel in the mean: a quarter of the ring; a ring's other collectives: 1."""
    if one.kind != "all-to-all":
        return 1.0
    extents = [len({place[d] for place in group}) for d in range(len(group[0]))]
    return max(1.0, max(extents) / 4)
