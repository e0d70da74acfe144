import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab.shard import Placement, make_mesh, place
from adaptlab.train.checksum import checksum

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool"]


def arrays() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {d: jnp.asarray(rng.integers(0, 2, (8, 6))).astype(d) for d in DTYPES} | {"none": jnp.zeros((0, 3))}


def test_a_checksum_is_the_same_on_any_mesh():
    one = checksum(arrays())
    for sizes in ({"data": 8}, {"fsdp": 4, "tensor": 2}):
        placement = Placement(make_mesh(**sizes), None)
        axes = dict.fromkeys(arrays(), ("embed", "ffn" if "tensor" in sizes else None))
        there = {name: x for name, x in arrays().items() if name != "none"}
        where = placement.shardings({name: axes[name] for name in there}, there)
        assert checksum(place(there, where) | {"none": arrays()["none"]}) == one


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_changed_element_changes_it(dtype: str):
    x = arrays()[dtype]
    seen = {checksum({"x": x})}
    for i in range(x.size):
        changed = np.array(x)
        changed.flat[i] = 1 - changed.flat[i]
        seen.add(checksum({"x": jnp.asarray(changed)}))
    assert len(seen) == 1 + x.size


def test_order_sign_name_dtype_and_shape_count():
    x = jnp.asarray([0.0, 1.0, 2.0, 2.0])
    others = [x[::-1], jnp.asarray([-0.0, 1.0, 2.0, 2.0]), x.reshape(2, 2), x.astype(jnp.bfloat16), x[:3]]
    sums = [checksum({"x": one}) for one in [x, *others]]
    assert len({*sums, checksum({"y": x})}) == len(others) + 2
    assert checksum({"x": jnp.array(x)}) == sums[0]
