import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from adaptlab import shard

MESH = shard.make_mesh(data=4, tensor=2)


def placement(**axes: tuple[str | None, ...]) -> shard.Placement:
    return shard.Placement(MESH, axes)


def test_logical_axes_live_where_the_rules_say():
    axes = {"kernel": ("layers", "embed", "ffn"), "table": ("vocab", "embed"), "scale": ("embed",)}
    arrays = {"kernel": jnp.zeros((3, 4, 6)), "table": jnp.zeros((8, 4)), "scale": jnp.zeros(4)}
    specs = jax.tree.map(lambda s: s.spec, placement().shardings(axes, arrays))
    assert specs == {
        "kernel": PartitionSpec(None, None, "tensor"),
        "table": PartitionSpec("tensor", None),
        "scale": PartitionSpec(None),
    }


def test_placed_arrays_hold_the_same_numbers_in_smaller_parts():
    x = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    where = placement().shardings({"x": ("embed", "ffn")}, {"x": x})
    placed = shard.place({"x": x}, where)["x"]
    assert {part.data.shape for part in placed.addressable_shards} == {(4, 3)}
    np.testing.assert_array_equal(placed, x)


def test_a_batch_is_split_over_the_data_axis():
    x = jax.device_put(jnp.arange(8.0), placement().batch)
    assert sorted({tuple(np.asarray(part.data)) for part in x.addressable_shards}) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert jax.device_put(x, placement().replicated).sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        (("embed", "colour"), (4, 4), r"x: no rule for the logical axes \['colour'\]; rules exist for .*'bottleneck'"),
        (("heads", "ffn"), (4, 4), r"x: two of the axes \('heads', 'ffn'\) live on one mesh axis"),
        (("embed", "ffn"), (4, 5), r"x: ffn=5 does not divide over tensor=2; choose tensor from \[1, 5\]"),
    ],
)
def test_impossible_placements_are_errors_that_name_the_path(axes: tuple, shape: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        placement().shardings({"x": axes}, {"x": np.zeros(shape)})


def test_a_mesh_uses_all_devices_or_none():
    with pytest.raises(ValueError, match=r"data=3 x tensor=2 needs 6 devices and JAX sees 8 .*product is 8"):
        shard.make_mesh(data=3, tensor=2)


def test_one_size_may_be_what_the_others_leave():
    assert dict(shard.make_mesh(data=-1, tensor=2).shape) == dict.fromkeys(shard.AXES, 1) | {"data": 4, "tensor": 2}
    with pytest.raises(ValueError, match=r"one of them at most is -1"):
        shard.make_mesh(data=-1, fsdp=-1)
    with pytest.raises(ValueError, match=r"needs a multiple of 3 devices and JAX sees 8"):
        shard.make_mesh(data=-1, tensor=3)


class _Device:
    """A device of a pod: what a mesh asks of one."""

    platform, device_kind, process_index = "gpu", "a chip", 0

    def __init__(self, number: int, slice_index: int):
        self.id, self.slice_index = number, slice_index


@pytest.mark.parametrize(
    ("sizes", "outer"),
    [
        ({"data": 2, "fsdp": 4}, "data"),
        ({"replica": 2, "tensor": 4}, "replica"),
        ({"stage": 2, "data": 2, "fsdp": 2}, "data"),
    ],
)
def test_only_an_outer_axis_crosses_slices(sizes: dict[str, int], outer: str):
    devices = [_Device(n, n // 4) for n in range(8)]
    mesh = shard.make_mesh(**sizes, devices=devices)
    slices = np.vectorize(lambda d: d.slice_index)(mesh.devices)
    for axis, name in enumerate(shard.AXES):
        crosses = np.ptp(slices, axis=axis).max() > 0
        assert crosses == (name == outer)


def test_slices_that_no_outer_axis_tells_apart_are_an_error():
    with pytest.raises(ValueError, match=r"2 slices cannot be told apart .* make data .* a multiple of 2"):
        shard.make_mesh(fsdp=8, devices=[_Device(n, n // 4) for n in range(8)])


def test_an_array_is_constrained_only_while_computing():
    x = jnp.zeros((8, 4, 6))

    def f(x: jax.Array) -> jax.Array:
        return shard.constrain(x, ("batch", "time", "ffn")) + 1

    assert "sharding_constraint" not in str(jax.make_jaxpr(f)(x))
    assert "sharding_constraint" in str(jax.make_jaxpr(shard.on(placement(), f))(x))
    assert jax.jit(shard.on(placement(), f))(x).sharding.spec == PartitionSpec("data", None, "tensor")


def test_what_computes_divides_or_raises_but_a_lone_example_may_be_anywhere():
    def f(x: jax.Array) -> jax.Array:
        return shard.constrain(x, ("batch", "time", "ffn"))

    with pytest.raises(ValueError, match=r"ffn=5 does not divide over tensor=2; choose tensor from \[1, 5\]"):
        jax.jit(shard.on(placement(), f))(jnp.zeros((8, 4, 5)))
    assert jax.jit(shard.on(placement(), f))(jnp.zeros((1, 4, 6))).shape == (1, 4, 6)
