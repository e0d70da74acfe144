"""Quantised weights: against bitsandbytes 0.50.2 (`tests/golden/bitsandbytes.npz`), and as nodes."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri

from adaptlab import leaf
from adaptlab.leaf import Affine, LowRank, Quantized, codes, quantize
from adaptlab.shard import Placement, make_mesh, place

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "bitsandbytes.npz")
A = GOLDEN["A"]  # a weight [output, input] as PyTorch keeps it


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def affine(w: np.ndarray, bits: int, transposed: bool = True) -> Affine:
    """A node like those of GGUF files, of about the values of w."""
    rows = w.swapaxes(-1, -2) if transposed else w
    rng, blocks = np.random.default_rng(0), (*rows.shape[:-1], rows.shape[-1] // 2)
    scale, minimum = rng.normal(size=(2, *blocks)).astype(np.float16)
    if bits == 4:
        return Affine(codes.pack(rng.integers(0, 16, rows.shape, np.uint8)), scale, minimum, transposed)
    return Affine(rng.integers(-128, 128, rows.shape, np.int8), scale, None, transposed)


def on_device(node: Any) -> Any:
    return jax.tree.map(jnp.asarray, node)


MAKERS = {
    "nf4": partial(quantize, code="nf4", block=2),
    "nf4_double": partial(quantize, code="nf4", block=2, double=True),
    "fp4": partial(quantize, code="fp4", block=4),
    "int8": partial(quantize, code="int8", block=None),
    "dynamic8": partial(quantize, code="dynamic8", block=2),
    "affine4": partial(affine, bits=4),
    "affine8": partial(affine, bits=8),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Any:
    return lambda w, transposed=True: on_device(MAKERS[request.param](w, transposed=transposed))


@pytest.mark.parametrize("code", ["nf4", "fp4", "dynamic8"])
def test_the_code_books_are_those_of_bitsandbytes(code: str):
    np.testing.assert_array_equal(codes.CODES[code], GOLDEN[f"code_{code}"])


def test_nf4_is_made_of_quantiles_of_the_normal_distribution():
    most = 1 - (1 / 32 + 1 / 30) / 2
    positive, negative = ndtri(np.linspace(0.5, most, 9)), -ndtri(np.linspace(0.5, most, 8))[:0:-1]
    wanted = np.concatenate([negative, positive]) / positive[-1]
    np.testing.assert_allclose(codes.CODES["nf4"], wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("code", ["nf4", "fp4"])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_four_bits_are_those_of_bitsandbytes(code: str, block: int, array: Any):
    node = quantize(array(A.T.copy()), code, block=block)
    golden = {name: GOLDEN[f"{code}_{block}_{name}"] for name in ("packed", "absmax", "dequantised")}
    np.testing.assert_array_equal(node.codes.reshape(-1), golden["packed"].reshape(-1))
    np.testing.assert_array_equal(node.absmax.reshape(-1), golden["absmax"])
    np.testing.assert_allclose(leaf.dense(on_device(node)).T, golden["dequantised"], rtol=0, atol=1e-7)


def test_doubly_quantised_scales_are_those_of_bitsandbytes():
    node = quantize(A.T, "nf4", double=True)
    assert isinstance(node.absmax, leaf.Scales)
    np.testing.assert_array_equal(node.codes.reshape(-1), GOLDEN["nf4_64_packed"].reshape(-1))
    np.testing.assert_array_equal(node.absmax.codes.reshape(-1), GOLDEN["double_codes"])
    np.testing.assert_allclose(node.absmax.absmax, GOLDEN["double_absmax"], rtol=1e-7)
    np.testing.assert_allclose(node.absmax.offset, GOLDEN["double_offset"], rtol=1e-7)
    np.testing.assert_allclose(leaf.dense(on_device(node)).T, GOLDEN["double_dequantised"], rtol=0, atol=1e-7)


def test_eight_dynamic_bits_are_those_of_bitsandbytes():
    node = quantize(A.reshape(32, 256), "dynamic8", block=256, transposed=False)
    np.testing.assert_array_equal(node.codes.reshape(A.shape), GOLDEN["dynamic8_codes"])
    dequantised = leaf.dense(on_device(node)).reshape(A.shape)
    np.testing.assert_allclose(dequantised, GOLDEN["dynamic8_dequantised"], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("double", "error"), [(False, 0.00211659), (True, 0.00212216)])
def test_the_error_of_nf4_is_the_published_one(double: bool, error: float):
    got = np.sqrt(np.mean((leaf.dense(on_device(quantize(A.T, "nf4", double=double))).T - A) ** 2))
    assert float(got) == pytest.approx(error, abs=5e-9)


def test_int8_is_off_by_half_a_step_of_its_rows_at_most():
    node = quantize(A.T, "int8", block=None)
    assert node.codes.dtype == np.int8
    step = np.abs(A).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(leaf.dense(on_device(node)).T - A) < step * 0.5001)


def test_values_of_a_code_and_rows_of_zeros_are_kept(make: Any):
    w = np.zeros((8, 4), np.float32)
    w[:, 1] = [1, -1, 1, 1, -1, 1, 1, -1]
    node = make(w)
    if isinstance(node, Quantized) and node.code != "dynamic8" and not isinstance(node.absmax, leaf.Scales):
        np.testing.assert_array_equal(leaf.dense(node), w)
    assert np.all(np.isfinite(leaf.dense(node)))


@pytest.mark.parametrize("transposed", [True, False])
def test_a_quantised_node_acts_as_its_dense_matrix(make: Any, transposed: bool):
    assert_acts_as_its_dense_matrix(make(normal(0, 8, 12), transposed))


def test_a_quantised_node_below_lora_acts_as_its_dense_matrix():
    node = on_device(quantize(normal(0, 8, 12), "nf4", block=2, double=True))
    a, b = jnp.asarray(normal(1, 8, 3)), jnp.asarray(normal(2, 3, 12))
    assert_acts_as_its_dense_matrix(LowRank(node, a, b, jnp.asarray(0.5)))


def assert_acts_as_its_dense_matrix(node: Any) -> None:
    dense, close = leaf.dense(node), {"rtol": 1e-5, "atol": 1e-3}
    x, y, ids = jnp.asarray(normal(3, 2, 5, 8)), jnp.asarray(normal(4, 2, 5, 12)), jnp.asarray([[0, 7], [3, 3]])
    assert (dense.shape, dense.dtype) == ((8, 12), jnp.float32)
    np.testing.assert_allclose(leaf.dot(x, node), x @ dense, **close)
    np.testing.assert_allclose(leaf.dot(y, node, transpose=True), y @ dense.T, **close)
    np.testing.assert_allclose(leaf.take(node, ids, jnp.float32), dense[ids], **close)
    half = leaf.dot(x.astype(jnp.bfloat16), node)
    assert half.dtype == leaf.take(node, ids, jnp.bfloat16).dtype == jnp.bfloat16
    assert not leaf.is_quantized(node) or np.array_equal(half, leaf.dot(x.astype(jnp.bfloat16), dense))


def test_layers_and_experts_are_batch_axes(make: Any):
    w, x = normal(0, 2, 2, 8, 12), jnp.asarray(normal(1, 5, 8))
    stack = make(w)
    dense = leaf.dense(stack)
    assert dense.shape == w.shape
    for i, j in np.ndindex(2, 2):
        if isinstance(stack, Quantized):  # `affine` draws its own numbers
            np.testing.assert_array_equal(dense[i, j], leaf.dense(make(w[i, j])))
        expert = jax.tree.map(lambda a: a[i, j], stack)  # noqa: B023 (called at once)
        np.testing.assert_allclose(leaf.dot(x, expert), x @ dense[i, j], rtol=1e-5, atol=1e-3)
    scanned = jax.lax.scan(lambda c, layer: (c, jax.vmap(partial(leaf.dot, x))(layer)), 0, stack)[1]
    np.testing.assert_allclose(scanned, jnp.einsum("bd,lkdf->lkbf", x, dense), rtol=1e-5, atol=1e-3)


def test_gradients_reach_the_input_and_no_part_of_the_weight(make: Any):
    node, x = make(normal(0, 8, 12)), jnp.asarray(normal(1, 5, 8))

    def loss(x: jax.Array, node: Any) -> jax.Array:
        return jnp.sum(jnp.sin(leaf.dot(x, node)))

    def plain(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(x @ leaf.dense(node)))

    close = {"rtol": 1e-4, "atol": 1e-3}
    np.testing.assert_allclose(jax.grad(loss)(x, node), jax.grad(plain)(x), **close)
    v = jnp.ones_like(x)
    products = [jax.jvp(jax.grad(f), (x,), (v,))[1] for f in (lambda x: loss(x, node), plain)]
    np.testing.assert_allclose(*products, **close)
    for g in jax.tree.leaves(jax.grad(loss, argnums=1, allow_int=True)(x, node)):
        assert g.dtype == jax.dtypes.float0 or not np.any(g)


@pytest.mark.parametrize("names", [("layers", None, "ffn"), ("layers", "ffn", None)], ids=["columns", "rows"])
def test_a_mesh_splits_the_codes_along_either_axis(make: Any, names: Any):
    node, x = make(normal(0, 3, 8, 12)), jnp.asarray(normal(1, 5, 8))
    placement = Placement(make_mesh(data=4, tensor=2), {"kernel": names})
    axes = leaf.array_axes(placement.axes, {"kernel": node})
    spread = place({"kernel": node}, placement.shardings(axes, {"kernel": node}))["kernel"]
    assert spread.codes.addressable_shards[0].data.size * 2 == spread.codes.size
    run = jax.jit(lambda n: jax.lax.scan(lambda c, w: (c, leaf.dot(x, w)), 0, n)[1])
    np.testing.assert_allclose(run(spread), run(node), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("size", "block", "code"), [(12, 5, "nf4"), (9, 3, "fp4"), (12, 0, "int8")])
def test_a_block_that_does_not_divide_the_row_is_an_error(size: int, block: int, code: str):
    with pytest.raises(ValueError, match=f"block={block} does not divide rows of {size}"):
        quantize(normal(0, size, 4), code, block=block)


def test_an_unknown_code_is_an_error_that_names_the_codes():
    with pytest.raises(ValueError, match=r"code='nf5' is not one of \['dynamic8', 'fp4', 'int8', 'nf4'\]"):
        quantize(normal(0, 8, 4), "nf5")


def test_the_backward_pass_keeps_codes_and_not_the_weights_they_stand_for():
    layers, width = 16, 128
    node = on_device(quantize(normal(0, layers, width, width), "nf4"))

    def loss(x: jax.Array, w: Any) -> jax.Array:
        return jnp.sum(jax.lax.scan(lambda h, layer: (jnp.tanh(leaf.dot(h, layer)), None), x, w)[0])

    x = jnp.ones((4, width))
    temporaries = jax.jit(jax.grad(loss)).lower(x, node).compile().memory_analysis().temp_size_in_bytes
    assert temporaries < 4 * width * width * 4 < layers * width * width * 4
