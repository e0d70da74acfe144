"""What one process has of global arrays. Here all devices belong to one; of many, see tests/hosts."""

import jax
import numpy as np
import pytest

from adaptlab import shard

# How two hosts of four devices each, in the mesh's order, share a batch of eight rows.
LAYOUTS = {
    "data": ({"data": 8}, [range(4), range(4, 8)]),
    "fsdp": ({"fsdp": 8}, [range(4), range(4, 8)]),
    "expert": ({"expert": 8}, [range(4), range(4, 8)]),
    "data and fsdp": ({"data": 2, "fsdp": 4}, [range(4), range(4, 8)]),
    "data across, tensor inside": ({"data": 2, "tensor": 4}, [range(4), range(4, 8)]),
    "tensor across hosts": ({"tensor": 8}, [range(8), range(8)]),
    "stages across hosts": ({"stage": 2, "data": 4}, [range(8), range(8)]),
    "replicas across hosts": ({"replica": 2, "data": 4}, [range(8), range(8)]),
    "contexts": ({"data": 2, "context": 4}, [range(4), range(4, 8)]),
}


def placement(**sizes: int) -> shard.Placement:
    return shard.Placement(shard.make_mesh(**sizes), None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_host_has_the_rows_that_its_devices_hold(layout: str):
    sizes, wanted = LAYOUTS[layout]
    where = placement(**sizes)
    hosts = where.mesh.devices.reshape(2, 4)
    assert [shard.local_rows(where.batch, 8, host).tolist() for host in hosts] == [list(rows) for rows in wanted]


def test_interleaved_devices_have_interleaved_rows():
    where = placement(data=8)
    assert shard.local_rows(where.batch, 16, where.mesh.devices.ravel()[::2]).tolist() == [0, 1, 4, 5, 8, 9, 12, 13]


def test_a_batch_that_the_mesh_does_not_divide_is_an_error_with_a_remedy():
    with pytest.raises(ValueError, match=r"batch of 12 rows does not divide over the 8 parts .* a multiple of 8"):
        shard.local_rows(placement(data=2, fsdp=4).batch, 12)


def test_of_a_stored_array_every_part_is_read_once_and_no_more_than_the_parts():
    x, read = np.arange(64.0, dtype=np.float32).reshape(8, 8), []

    def part(index: tuple[slice, ...]) -> np.ndarray:
        read.append(x[index].shape)
        return x[index]

    where = placement(data=2, tensor=4)
    sharding = jax.sharding.NamedSharding(where.mesh, jax.sharding.PartitionSpec(None, "tensor"))
    placed = shard.put(shard.Stored(x.shape, x.dtype, part), sharding)
    np.testing.assert_array_equal(placed, x)
    assert read == [(8, 2)] * 4  # the two devices that hold the same part share a reading


def test_fetched_arrays_are_whole():
    x = np.arange(16.0, dtype=np.float32)
    (got,) = jax.tree.leaves(shard.fetch({"x": shard.put(x, placement(data=8).batch)}))
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, x)
