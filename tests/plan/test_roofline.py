"""Times, energy and topologies by hand."""

import pytest

from adaptlab.plan import CHIPS, Collective, budget, parse_topology, roofline
from adaptlab.plan.roofline import group_bandwidth
from adaptlab.plan.topology import simulated_coordinates

V5E = CHIPS["v5e"]
LINE = [(x, 0) for x in range(4)]


def collective(kind: str = "all-gather", *, crosses: bool = False, sent: float = 1e9) -> Collective:
    return Collective(kind, ("fsdp",), 4, ("bf16[8]",), 2, sent, crosses, (0, 1, 2, 3), "")


def times(*found: Collective):
    return roofline(V5E, passes=197e12, moved=819e9 / 4, found=found, coordinates=LINE, shape=(4, 4))


def test_a_step_takes_the_longest_of_its_times_and_is_limited_by_it():
    alone = times()
    assert (alone.compute, alone.memory, alone.interconnect, alone.network) == (1.0, 0.25, 0.0, 0.0)
    assert (alone.step, alone.limit) == (1.0, "compute")
    busy = times(collective(sent=50e9))  # twice 50 GB over one link of 50 GB/s: a line of 4 of 16 is no ring
    assert (busy.interconnect, busy.step, busy.limit) == (2.0, 2.0, "interconnect")
    assert busy.serial == 3.0


def test_what_crosses_slices_goes_over_the_network():
    slow = times(collective(crosses=True, sent=3.125e9))
    assert (slow.network, slow.interconnect, slow.limit) == (2.0, 0.0, "network")


def test_links_count_by_the_dimensions_of_the_torus_and_by_rings_that_close():
    link = V5E.link_bandwidth
    assert group_bandwidth(V5E, LINE, (4, 4)) == link
    assert group_bandwidth(V5E, [(x, 0) for x in range(16)], (16, 16)) == 2 * link
    assert group_bandwidth(V5E, [(x, y) for x in range(16) for y in range(16)], (16, 16)) == 4 * link
    assert group_bandwidth(V5E, [(x, 0) for x in range(16)], (16, 16), "collective-permute") == link
    v5p = CHIPS["v5p"]
    assert group_bandwidth(v5p, [(x, 0, 0) for x in range(4)], (4, 4, 8)) == 2 * v5p.link_bandwidth


def test_an_all_to_all_travels_a_quarter_of_its_ring():
    ring = [(x, 0) for x in range(16)]
    sixteen = collective("all-to-all", sent=1e9)._replace(group=tuple(range(16)))
    gathered = sixteen._replace(kind="all-gather")
    both = [
        roofline(V5E, passes=0, moved=0, found=[one], coordinates=ring, shape=(16, 16)).interconnect
        for one in (sixteen, gathered)
    ]
    assert both[0] == 4 * both[1]


def test_energy_is_power_times_time_times_what_the_building_adds():
    cost = budget(1e9, tokens_per_step=1_000_000, step_time=3.6, chips=100, power=170.0, pue=1.1, grid=0.5)
    assert (cost.steps, cost.hours, cost.chip_hours) == (1000, 1.0, 100.0)
    assert cost.energy == pytest.approx(100 * 0.170 * 1.1)
    assert cost.carbon == pytest.approx(0.5 * cost.energy)


@pytest.mark.parametrize(("what", "message"), [({"pue": 0.9}, "pue=0.9 must be"), ({"grid": -1.0}, "grid=-1.0 must")])
def test_impossible_costs_are_refused(what: dict[str, float], message: str):
    given = {"tokens_per_step": 1, "step_time": 1.0, "chips": 1, "power": 1.0, "pue": 1.0, "grid": 1.0}
    with pytest.raises(ValueError, match=message):
        budget(1.0, **(given | what))


@pytest.mark.parametrize(
    ("name", "chips"), [("v5e:16x16", 256), ("v4:2x2x4", 16), ("v5p:8x16x16", 2048), ("v6e:2x4", 8)]
)
def test_a_topology_is_a_chip_and_a_shape(name: str, chips: int):
    assert parse_topology(name).chips == chips
    assert parse_topology(name, slices=2).chips == 2 * chips


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", r"no chip and shape; write e\.g\. 'v5e:4x4'"),
        ("v5x:4x4", r"unknown chip 'v5x'; choose from \['v4', 'v5e', 'v5p', 'v6e'\]"),
        ("v5e:3x5", r"no slices of 3x5 v5e chips; choose from \['1x1', '2x2'"),
        ("v5p:4x4", r"no slices of 4x4 v5p chips; choose from \['2x2x1'.*multiples of 4"),
    ],
)
def test_a_topology_that_there_is_not_is_an_error_with_those_there_are(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_topology(name)


def test_there_is_at_least_one_slice():
    with pytest.raises(ValueError, match="slices=0 must be at least 1"):
        parse_topology("v5e:4x4", 0)


def test_simulated_devices_are_laid_out_row_by_row_slice_by_slice():
    places, slices = simulated_coordinates(parse_topology("v5e:2x2", 2), range(8))
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1)] * 2
    assert slices == [0] * 4 + [1] * 4
