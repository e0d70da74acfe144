"""4-bit weights read in halves, as on a TPU: by the numbers that are read elsewhere."""

import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from adaptlab import leaf
from adaptlab.leaf import Affine, codes, halves, quantize
from adaptlab.leaf.weight import product
from adaptlab.shard import Placement, computing, make_mesh, place


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def affine(w: np.ndarray, transposed: bool) -> Affine:
    rng, rows = np.random.default_rng(0), w.swapaxes(-1, -2) if transposed else w
    scale, minimum = rng.normal(size=(2, *rows.shape[:-1], rows.shape[-1] // 4)).astype(np.float16)
    return Affine(codes.pack(rng.integers(0, 16, rows.shape, np.uint8)), scale, minimum, transposed)


MAKERS = {
    "nf4": lambda w, transposed: quantize(w, "nf4", block=4, transposed=transposed),
    "nf4_double": lambda w, transposed: quantize(w, "nf4", block=2, double=True, transposed=transposed),
    "fp4": lambda w, transposed: quantize(w, "fp4", block=4, transposed=transposed),
    "affine4": affine,
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Any:
    return lambda w, transposed=True: jax.tree.map(jnp.asarray, MAKERS[request.param](w, transposed))


def on(platform: str) -> Any:
    """What is traced inside is for a device of this platform. (It runs on what there is.)"""
    mesh: Any = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]), shape={}, size=1)
    return computing(Placement(mesh, {}))


def has_halves(x: jax.Array, node: Any, platform: str) -> bool:
    with on(platform):
        return "optimization_barrier" in str(jax.make_jaxpr(lambda x, w: leaf.dot(x, w))(x, node))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_halves_are_the_rows_bit_by_bit(make: Any, dtype: Any):
    node = make(normal(0, 8, 12))
    even, odd = node.halves(dtype)
    rows = node.rows().astype(dtype)
    np.testing.assert_array_equal(jnp.stack([even, odd], -1).reshape(rows.shape), rows)
    assert even.dtype == dtype


@pytest.mark.parametrize("code", ["nf4", "fp4"])
def test_selecting_by_bits_is_looking_up_bit_by_bit(code: str):
    numbers = jnp.arange(16, dtype=jnp.int32)
    selected, found = np.asarray(codes.select(numbers, code)), np.asarray(codes.decode(numbers, code))
    np.testing.assert_array_equal(selected.view(np.uint32), found.view(np.uint32))  # of two zeros the right one, too


@pytest.mark.parametrize("transposed", [True, False])
def test_a_product_on_a_tpu_is_that_with_the_same_rounded_weights(make: Any, transposed: bool):
    node = make(normal(0, 8, 12), transposed)
    x, y = (jnp.asarray(normal(seed, 2, 5, width), jnp.bfloat16) for seed, width in ((1, 8), (2, 12)))
    dense = leaf.dense(node).astype(jnp.bfloat16).astype(jnp.float32)
    with on("tpu"):
        results = [leaf.dot(x, node), leaf.dot(y, node, transpose=True)]
    for got, want in zip(results, [x.astype(jnp.float32) @ dense, y.astype(jnp.float32) @ dense.T], strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2**-8, atol=1e-4)


def test_layers_examples_and_gradients_go_through_halves(make: Any):
    stack, x = make(normal(0, 3, 8, 8)), jnp.asarray(normal(1, 2, 5, 8), jnp.bfloat16)

    def loss(x: jax.Array, w: Any, platform: str) -> jax.Array:
        with on(platform):
            h = jax.lax.scan(lambda h, layer: (jnp.sin(jax.vmap(lambda h: leaf.dot(h, layer))(h)), None), x, w)[0]
        return jnp.sum(h.astype(jnp.float32))

    tpu, cpu = (jax.grad(loss)(x, stack, platform).astype(jnp.float32) for platform in ("tpu", "cpu"))
    np.testing.assert_allclose(tpu, cpu, rtol=0.05, atol=0.05 * float(jnp.abs(cpu).max()))
    for g in jax.tree.leaves(jax.grad(loss, argnums=1, allow_int=True)(x, stack, "tpu")):
        assert g.dtype == jax.dtypes.float0 or not np.any(g)


def test_only_sixteen_bits_on_a_tpu_are_read_in_halves():
    node = jax.tree.map(jnp.asarray, quantize(normal(0, 8, 12), "nf4", block=4))
    x = jnp.ones((5, 8))
    assert has_halves(x.astype(jnp.bfloat16), node, "tpu")
    assert not has_halves(x, node, "tpu")
    assert not has_halves(x.astype(jnp.bfloat16), node, "cpu")


@pytest.mark.parametrize("code", ["int8", "dynamic8"])
def test_codes_of_a_byte_have_no_halves(code: str):
    node = jax.tree.map(jnp.asarray, quantize(normal(0, 8, 12), code, block=4))
    assert not has_halves(jnp.ones((5, 8), jnp.bfloat16), node, "tpu")


@pytest.mark.parametrize("transpose", [False, True])
def test_a_mesh_that_splits_columns_moves_no_weights_and_only_sums(transpose: bool):
    node = jax.tree.map(jnp.asarray, quantize(normal(0, 256, 64), "nf4", block=64))  # 256 inputs are the columns
    placement = Placement(make_mesh(data=1, tensor=8), {"kernel": ("ffn", None)})
    axes = leaf.array_axes(placement.axes, {"kernel": node})
    spread = place({"kernel": node}, placement.shardings(axes, {"kernel": node}))["kernel"]
    split = NamedSharding(placement.mesh, PartitionSpec(None, "tensor"))
    x = jnp.asarray(normal(1, 2, 64 if transpose else 256), jnp.bfloat16)
    put = jax.device_put(x, placement.replicated if transpose else split)

    def read(x: jax.Array, node: Any) -> jax.Array:
        return halves.product(x, node.halves(x.dtype), not transpose)

    program = jax.jit(read, out_shardings=split if transpose else placement.replicated).lower(put, spread).compile()
    want = product(x, node.rows(), not transpose)
    np.testing.assert_allclose(*(y.astype(jnp.float32) for y in (program(put, spread), want)), rtol=2**-7, atol=0.05)
    kinds = re.findall(r"(all-gather|all-to-all|all-reduce|collective-permute)\(", program.as_text() or "")
    assert kinds == ([] if transpose else ["all-reduce"])
