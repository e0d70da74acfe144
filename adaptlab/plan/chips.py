"""What is published of the chips a plan may be for. Per chip, not per core.

Peak, memory bandwidth and interconnect are those of cloud.google.com/tpu/docs (v4, v5e, v5p, v6e). Interconnect is
published as the sum over all links and both directions; a link's bandwidth in one direction is that over twice the
links. Where a table gives the data-centre network per pod, it is divided by the pod's chips. Memory is what libtpu
0.0.42 lets a program have.

Power is published for v4 alone: 170 W in the mean over training workloads, measured (arXiv:2304.01433, table 4). For
v5e and v5p it is *assumed* here that they do as many peak operations per watt as v4, and for v6e 1.67 times those of
v5e (Google's figure when it was announced, May 2024). Say `power=` if you know better.
"""

from typing import NamedTuple

__all__ = ["CHIPS", "Chip"]

_GIB = 2**30


class Chip(NamedTuple):
    """One chip.

    Attributes:
      name: as in `topology=`.
      hbm: bytes of main memory that a program may use, as libtpu reports it.
      peak: bfloat16 operations per second.
      hbm_bandwidth: bytes per second.
      link_bandwidth: bytes per second over one link of the interconnect, in one direction.
      dimensions: of the torus; each has two links.
      wraps: a dimension of a slice closes to a ring if its extent is a multiple of this.
      dcn_bandwidth: bytes per second to chips of other slices.
      power: watts.
      power_source: where that is from.
      platform: the name that libtpu knows it by.
    """

    name: str
    hbm: int
    peak: float
    hbm_bandwidth: float
    link_bandwidth: float
    dimensions: int
    wraps: int
    dcn_bandwidth: float
    power: float
    power_source: str
    platform: str


_ASSUMED = "assumed: peak operations per watt of TPU v4"

CHIPS: dict[str, Chip] = {
    "v4": Chip(
        name="v4",
        hbm=int(30.75 * _GIB),
        peak=275e12,
        hbm_bandwidth=1228e9,
        link_bandwidth=50e9,
        dimensions=3,
        wraps=4,
        dcn_bandwidth=6.25e9,
        power=170.0,
        power_source="measured mean, arXiv:2304.01433, table 4",
        platform="v4",
    ),
    "v5e": Chip(
        name="v5e",
        hbm=int(15.75 * _GIB),
        peak=197e12,
        hbm_bandwidth=819e9,
        link_bandwidth=50e9,
        dimensions=2,
        wraps=16,
        dcn_bandwidth=3.125e9,
        power=122.0,
        power_source=_ASSUMED,
        platform="v5e",
    ),
    "v5p": Chip(
        name="v5p",
        hbm=int(95.74 * _GIB),
        peak=459e12,
        hbm_bandwidth=2765e9,
        link_bandwidth=100e9,
        dimensions=3,
        wraps=4,
        dcn_bandwidth=6.25e9,
        power=284.0,
        power_source=_ASSUMED,
        platform="v5p",
    ),
    "v6e": Chip(
        name="v6e",
        hbm=int(31.25 * _GIB),
        peak=918e12,
        hbm_bandwidth=1638e9,
        link_bandwidth=100e9,
        dimensions=2,
        wraps=16,
        dcn_bandwidth=12.5e9,
        power=340.0,
        power_source="assumed: 1.67 times the operations per watt of v5e, which are assumed to be TPU v4's",
        platform="v6e",
    ),
}
