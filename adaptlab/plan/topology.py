"""Slices of TPUs by name, e.g. "v5e:16x16": which there are, and where their chips are."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from adaptlab.config import nearest
from adaptlab.plan.chips import CHIPS, Chip

__all__ = ["Topology", "parse_topology", "simulated_coordinates", "tpu_devices"]

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")


class Topology(NamedTuple):
    """Slices of one shape.

    Attributes:
      name: as libtpu takes it.
      chip: what they are made of.
      shape: chips along each dimension of the torus.
      slices: how many there are.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int

    @property
    def chips(self) -> int:
        """All chips of all slices."""
        return math.prod(self.shape) * self.slices


def parse_topology(name: str, slices: int = 1) -> Topology:
    """Read a topology's name.

    Raises:
      ValueError: an unknown chip, a shape that there are no slices of, or no slice at all.
    """
    if slices < 1:
        raise ValueError(f"slices={slices} must be at least 1.")
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if found is None:
        raise ValueError(f"topology={name!r} is no chip and shape; write e.g. 'v5e:4x4' or 'v5p:4x4x8'.")
    chip = CHIPS.get(found.group(1))
    if chip is None:
        raise ValueError(
            f"topology={name!r}: unknown chip {found.group(1)!r}; choose from {sorted(CHIPS)}."
            f"{nearest(found.group(1), CHIPS)}"
        )
    shape = tuple(int(n) for n in found.group(2).split("x"))
    choices = _FLAT if chip.dimensions == 2 else _CUBES
    cubes = chip.dimensions == 3 and len(shape) == 3 and all(n % 4 == 0 and n for n in shape)
    if not cubes and found.group(2) not in choices:
        more = ", and any multiples of 4" if chip.dimensions == 3 else ""
        raise ValueError(
            f"topology={name!r}: there are no slices of {found.group(2)} {chip.name} chips; choose from "
            f"{list(choices)}{more}."
        )
    return Topology(name, chip, shape, slices)


def tpu_devices(topology: Topology) -> list[Any]:
    """Return the devices of a topology as libtpu describes them: to compile for, not to compute on.

    Raises:
      ValueError: libtpu does not know this topology.
    """
    from jax.experimental import topologies

    # Two cores of a v4 work as one, like those of its successors.
    more = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, num_slices=topology.slices, **more
        )
    except Exception as error:
        raise ValueError(f"topology={topology.name!r}: libtpu refuses it: {str(error).splitlines()[0]}") from error
    return list(described.devices)


def simulated_coordinates(topology: Topology, positions: Sequence[int]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Return coordinates and slices of devices that only have numbers, as if they were laid out row by row."""
    inside = math.prod(topology.shape)
    coordinates = [tuple(int(n) for n in np.unravel_index(p % inside, topology.shape)) for p in positions]
    return coordinates, [p // inside for p in positions]
